"""Time of training beside one busy process, against the time of the machine as it is.

    uv run python benchmarks/beside_busy.py [--threads 2] [--steps 30] [--repeats 3] [--policies PASSIVE ACTIVE]

Each measurement is a process of its own that trains steps of GuidedMix-Net (ResNet-18 with random weights, fixed
batches, on the processor) and reports the median of its steps. Pairs follow one another: once alone, once beside a
process that computes without a pause. `PASSIVE` is what `gmtool train` sets OMP_WAIT_POLICY to; `ACTIVE` lets idle
threads of OpenMP spin. The bound is 2.2 for PASSIVE, on a machine that does nothing else with as many cores as
threads; the load average at the start is printed, since on a busy machine both of a pair are slow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BOUND = 2.2
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
"""Computes until it is killed, or the process that started it has ended."""
CHILD = """
import sys, time, statistics
from functools import partial
threads, steps, crop = map(int, sys.argv[1:])
import numpy as np, torch
torch.set_num_threads(threads)
from gmtool.classes import load_classes
from gmtool.config import MethodConfig, ModelConfig, OptimConfig
from gmtool.nn.checkpoint import build_network
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.engine.accumulate import propagate
from gmtool_training.engine.machine import Machine
from gmtool_training.engine.optim import build_optimizer
from gmtool_training.method.step import StepInput, guidedmix_step
classes, machine = load_classes("voc"), Machine(torch.device("cpu"))
torch.manual_seed(0)
network = build_network(ModelConfig(encoder="resnet18"), classes).train()
optimizer = build_optimizer(network, OptimConfig())
images = torch.randint(0, 256, (4, 3, crop, crop), dtype=torch.uint8)
masks = torch.randint(0, 21, (2, crop, crop), dtype=torch.uint8)
step = partial(guidedmix_step, method=MethodConfig(), classes=classes, average=None, class_weights=None)
times = []
for number in range(steps + 2):
    started = time.perf_counter()
    optimizer.zero_grad()
    inputs = StepInput(LabeledBatch(images[:2], masks), images[2:], 1.0, np.random.default_rng(number))
    propagate(machine, network, step, [inputs])
    optimizer.step()
    times.append(time.perf_counter() - started)
print(statistics.median(times[2:]))
"""
"""Prints the median of the steps, seconds, without the first two."""


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy within the block."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def step_seconds(policy: str, arguments: argparse.Namespace) -> float:
    """Return the median time of a step in a new process."""
    environment = os.environ | {"OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(arguments.threads)}
    numbers = map(str, (arguments.threads, arguments.steps, arguments.crop))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *numbers], env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print a row for each policy, and the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--crop", type=int, default=129)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--policies", nargs="+", default=["PASSIVE", "ACTIVE"], choices=["PASSIVE", "ACTIVE"])
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load average {load:.1f} on {os.cpu_count()} processors, {arguments.threads} threads")
    pairs: dict[str, list[tuple[float, float]]] = {policy: [] for policy in arguments.policies}
    for _ in range(arguments.repeats):
        for policy, found in pairs.items():
            alone = step_seconds(policy, arguments)
            with busy_process():
                beside = step_seconds(policy, arguments)
            found.append((alone, beside))
    ratios = {
        policy: statistics.median(beside / alone for alone, beside in found) for policy, found in pairs.items()
    }
    for policy, found in pairs.items():
        alone, beside = (statistics.median(times) for times in zip(*found, strict=True))
        print(
            f"{policy:<8} a step alone {1000 * alone:7.0f} ms, beside a busy process {1000 * beside:7.0f} ms: "
            f"{ratios[policy]:.2f} times"
        )
    if "PASSIVE" in ratios:
        verdict = "within" if ratios["PASSIVE"] <= BOUND else "above"
        print(f"PASSIVE is {verdict} the bound of {BOUND}")
    print(json.dumps({"load": load, "threads": arguments.threads, "pairs_s": pairs, "ratios": ratios}))


if __name__ == "__main__":
    main()
