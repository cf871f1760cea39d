"""Cost of an image size in ONNX Runtime on a card: the first batch, the way to another size and back, the rest.

    uv run python benchmarks/cuda_shapes.py MODEL.onnx [--batch 8] [--sizes 213x320 320x213]

One line for each way to choose cuDNN's algorithms and layout, then the backend of `gmtool predict`, which has a
session for each shape, on batches of both sizes in turn. Without a card it says so.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from gmtool_serving.backends.model_file import read_model_file
from gmtool_serving.backends.onnx_runtime import CUDA, OrtBackend, cuda_options

from gmtool.artifact.shapes import parse_size
from gmtool.errors import BackendError
from gmtool.images import UInt8Array

WAYS: tuple[dict[str, str], ...] = (
    {"cudnn_conv_algo_search": "HEURISTIC"},
    {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    {"cudnn_conv_algo_search": "DEFAULT"},
    {"cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": "1"},
    {"cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": "1"},
)
STEADY = 8
"""Batches of one shape of which the fastest counts."""


def main() -> None:
    """Measure each way, then the backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sizes", nargs=2, default=["213x320", "320x213"], metavar="HxW")
    arguments = parser.parse_args()
    try:
        backend = OrtBackend(arguments.model, device="cuda")
    except BackendError as error:
        sys.exit(str(error))
    random = np.random.default_rng(0)
    sizes = [parse_size(size, where="--sizes") for size in arguments.sizes]
    first, second = (random.integers(0, 256, (arguments.batch, *size, 3), np.uint8) for size in sizes)
    print("s: first batch, other size, back, again; ms: steady batch, steady image")
    for way in WAYS:
        print(way, measure(arguments.model, way, first, second), flush=True)
    counts = [count for count in (arguments.batch, arguments.batch, arguments.batch - 3, 3, 1) if count > 0]
    times = [_seconds(partial(backend.predict, images[:n])) for n in counts for images in (first, second)]
    print(f"backend, batches of {counts}, both sizes in turn, s:", " ".join(f"{each:.3f}" for each in times))


def measure(model: Path, way: dict[str, str], first: UInt8Array, second: UInt8Array) -> str:
    """Return the times of one way."""
    file = read_model_file(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    provider = (CUDA, cuda_options(file.spec.precision) | way)
    session = ort.InferenceSession(file.content, options, providers=[provider])

    def run(images: UInt8Array) -> float:
        return _seconds(lambda: session.run(list(file.spec.outputs), {file.spec.input.name: images}))

    start = run(first)
    steady = min(run(first) for _ in range(STEADY))
    turns = [run(second), run(first), run(second)]
    run(first[:1])
    single = min(run(first[:1]) for _ in range(STEADY))
    shown = " ".join(f"{each:.2f}" for each in (start, *turns))
    return f"{shown}; {1000 * steady:.1f} {1000 * single:.1f}"


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
