"""Cost of a GuidedMix-Net step: time against the supervised step, peak memory against a naive implementation.

    uv run python benchmarks/step.py [--crop 161] [--batch 4] [--threads 2]

Time: medians of interleaved steps on the same batch, forward and backward, no optimiser. Memory: how far one
step raises a fresh process above what it held before; the naive step is the one that the tests compare with, which
keeps the graphs of all four forwards until the end. ResNet-18 on the processor, 32-bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.method.step import StepInput, guidedmix_step, supervised_step

from gmtool.classes import load_classes
from gmtool.config import MethodConfig, ModelConfig
from gmtool.nn.checkpoint import build_network

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from naive_step import naive

REPEATS = 5
CLASSES = load_classes("voc")
MODES = ("supervised", "without L_dec", "guidedmix", "naive")


def make_step(mode: str, batch: int, crop: int) -> Callable[[], None]:
    """Return one forward and backward of a mode on a fixed batch."""
    torch.manual_seed(0)
    network = build_network(ModelConfig(encoder="resnet18"), CLASSES).train()
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2 * batch, 3, crop, crop), dtype=torch.uint8, generator=random)
    masks = torch.randint(0, len(CLASSES), (batch, crop, crop), dtype=torch.uint8, generator=random)
    method = MethodConfig(labeled_decoupling=mode != "without L_dec")
    step = partial(supervised_step if mode == "supervised" else guidedmix_step, method=method, classes=CLASSES)

    def run() -> None:
        network.zero_grad(set_to_none=True)
        inputs = StepInput(LabeledBatch(images[:batch], masks), images[batch:], 30.0, np.random.default_rng(0))
        if mode == "naive":
            backward(naive(network, inputs, method, foreground=CLASSES.foreground))
        else:
            step(network, inputs, backward)

    return run


def backward(loss: torch.Tensor) -> None:
    """Propagate a loss."""
    loss.backward()  # type: ignore[no-untyped-call]


def seconds(step: Callable[[], None]) -> float:
    """Return the wall-clock time of one step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def peak_mib(mode: str, arguments: argparse.Namespace) -> float:
    """Return the memory that one step adds to a fresh process, in MiB."""
    flags = ["--crop", str(arguments.crop), "--batch", str(arguments.batch), "--threads", str(arguments.threads)]
    command = [sys.executable, __file__, "--peak-of", mode, *flags]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(arguments: argparse.Namespace) -> None:
    """Print the peak memory of this process during one step minus that before, in MiB."""
    step = make_step(arguments.peak_of, arguments.batch, arguments.crop)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is held now
    before = peak_kib()
    step()
    print((peak_kib() - before) / 1024)


def peak_kib() -> int:
    """Return the largest resident size of this process so far (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Print times and peaks as ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--crop", type=int, default=161)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak-of", choices=MODES)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print_peak(arguments)
        return
    batch, crop, threads = arguments.batch, arguments.crop, arguments.threads
    steps = {mode: make_step(mode, batch, crop) for mode in MODES}
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(REPEATS + 1):
        for mode, step in steps.items():
            times[mode].append(seconds(step))
    medians = {mode: statistics.median(values[1:]) for mode, values in times.items()}
    peaks = {mode: peak_mib(mode, arguments) for mode in MODES}
    print(f"ResNet-18, {batch} + {batch} crops of {crop} px, {threads} threads")
    for mode in MODES:
        time_ratio, peak_ratio = medians[mode] / medians["supervised"], peaks[mode] / peaks["naive"]
        print(
            f"{mode:<14} {medians[mode]:7.3f} s  {time_ratio:5.2f} x supervised   "
            f"{peaks[mode]:7.0f} MiB  {peak_ratio:5.2f} x naive"
        )
    print(json.dumps({"median_s": medians, "peak_mib": peaks}))


if __name__ == "__main__":
    main()
