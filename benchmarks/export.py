"""Speed of each exported precision against eager PyTorch; time and memory of an export.

    uv run python benchmarks/export.py RUN [--height 240] [--width 320] [--threads 2]
    uv run python benchmarks/export.py --cost resnet50

Speed: medians of ratios of interleaved forwards on the same images of the run, masks at full size, on the
processor. Accuracy is what `gmtool export RUN --precision ... --score-images 0` measures and writes to export.md.
Cost: seconds and peak memory of a fresh process that exports a network of random weights to fp32 and runs it once:
all of an export but the comparison with PyTorch.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gmtool_export.graph.onnx import export_graph, keep_outputs
from gmtool_export.int8.cache import calibrate
from gmtool_export.int8.calibration import calibration_images
from gmtool_export.int8.search import quantize
from gmtool_export.proof.parity import onnx_runner
from PIL import Image

from gmtool.artifact.runs import CONFIG_NAME
from gmtool.classes import load_classes
from gmtool.config import ModelConfig
from gmtool.images import UInt8Array
from gmtool.nn.checkpoint import build_network, load_network
from gmtool.nn.model import normalize
from gmtool.settings import load_config

REPEATS = 9
BASE = "PyTorch, eager"


def make_forwards(run: Path, threads: int) -> dict[str, Callable[[UInt8Array], object]]:
    """Return functions by name that compute masks of images (N, H, W, 3)."""
    network, _ = load_network(run, "best")

    def eager(images: UInt8Array) -> object:
        with torch.inference_mode():
            batch = torch.from_numpy(images).permute(0, 3, 1, 2)
            return network(normalize(batch)).logits.max(dim=1).indices.to(torch.uint8)  # argmax is slower

    single, half = export_graph(network), export_graph(network, half=True)
    calibrated = calibrate(single, calibration_images(None, load_config(run / CONFIG_NAME).data))
    graphs = {
        "ONNX fp32": single,
        "ONNX fp16": half,
        "ONNX int8": quantize(single, calibrated, symmetric=False)[0],
        "ONNX int8 --symmetric": quantize(single, calibrated, symmetric=True)[0],
    }
    forwards: dict[str, Callable[[UInt8Array], object]] = {BASE: eager}
    for name, graph in graphs.items():
        forwards[name] = onnx_runner(keep_outputs(graph, ["mask"]).SerializeToString(), ["mask"], threads=threads)
    return forwards


def measure_speed(run: Path, height: int, width: int, threads: int) -> None:
    """Print the speed of every precision beside eager PyTorch and beside ONNX in fp32."""
    torch.set_num_threads(threads)
    paths = calibration_images(None, load_config(run / CONFIG_NAME).data).paths[:REPEATS]
    images = [np.array(Image.open(path).convert("RGB").resize((width, height)))[None] for path in paths]
    forwards = make_forwards(run, threads)
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for image in [images[0], *images]:  # the first round warms up
        for name, forward in forwards.items():
            started = time.perf_counter()
            forward(image)
            times[name].append(time.perf_counter() - started)
    kept = {name: values[1:] for name, values in times.items()}
    print(f"{run.name}, one image of {width}x{height}, {threads} threads")
    ratios: dict[str, dict[str, float]] = {}
    for name, values in kept.items():
        ratios[name] = {base: _ratio(kept[base], values) for base in (BASE, "ONNX fp32")}
        print(
            f"{name:<22} {1000 * statistics.median(values):8.1f} ms  {ratios[name][BASE]:5.2f} x eager   "
            f"{ratios[name]['ONNX fp32']:5.2f} x ONNX fp32"
        )
    print(
        json.dumps({"median_s": {name: statistics.median(values) for name, values in kept.items()}, "x": ratios})
    )


def _ratio(base: list[float], values: list[float]) -> float:
    return statistics.median(slow / fast for slow, fast in zip(base, values, strict=True))


def measure_cost(encoder: str) -> None:
    """Print seconds (wall and processor) and peak memory of an export in a fresh process."""
    command = [sys.executable, __file__, "--child", encoder]
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def export_once(encoder: str) -> None:
    """Export a network with random weights; print time and memory."""
    started = time.perf_counter()
    network = build_network(ModelConfig(encoder=encoder), load_classes("voc")).eval()
    content = keep_outputs(export_graph(network), ["mask"]).SerializeToString()
    exported = time.perf_counter() - started
    onnx_runner(content, ["mask"])(np.zeros((1, 321, 321, 3), dtype=np.uint8))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{encoder}, {len(content) / 1e6:.0f} MB: exported in {exported:.1f} s, with one run "
        f"{time.perf_counter() - started:.1f} s ({usage.ru_utime + usage.ru_stime:.1f} s of processor), "
        f"peak {usage.ru_maxrss / 2**20:.2f} GiB"
    )


def main() -> None:
    """Run the measurements of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cost", metavar="ENCODER")
    parser.add_argument("--child", metavar="ENCODER")
    arguments = parser.parse_args()
    if arguments.child:
        export_once(arguments.child)
    if arguments.cost:
        measure_cost(arguments.cost)
    if arguments.run:
        measure_speed(arguments.run, arguments.height, arguments.width, arguments.threads)


if __name__ == "__main__":
    main()
