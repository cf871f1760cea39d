"""Time of a training step outside of forward, backward and optimiser: checks, averages, figures, logging.

    uv run python benchmarks/bookkeeping.py [--crop 161] [--batch 4] [--threads 2] [--steps 20]

Runs the training loop itself (GuidedMix-Net, ResNet-18, 32-bit, a weight average, a log event every 10 steps) on a
fixed batch on the processor, where nothing runs aside, and adds up the time inside each part of the bookkeeping.
The bound is 2 % of a step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gmtool_training.data.batches import LabeledBatch, UnlabeledBatch
from gmtool_training.engine import accumulate
from gmtool_training.engine.average import averaged_copy, update_average
from gmtool_training.engine.machine import Machine
from gmtool_training.engine.optim import build_optimizer, set_learning_rates
from gmtool_training.loop import fit
from gmtool_training.loop.figures import StepSums
from gmtool_training.loop.fit import Hooks
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.loop.schedule import FitSchedule
from gmtool_training.loop.stop import StopRequest
from gmtool_training.method.step import guidedmix_step
from gmtool_training.watch.log import RunLog

from gmtool.classes import load_classes
from gmtool.config import MethodConfig, ModelConfig, OptimConfig
from gmtool.nn.checkpoint import build_network

CLASSES = load_classes("voc")


class Stopwatch:
    """Adds up the seconds spent in functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and adds its time to `name`."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return call


def main() -> None:
    """Print each part of the bookkeeping as a share of the steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--crop", type=int, default=161)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    watch = Stopwatch()
    total = train(arguments, watch)
    share = sum(watch.seconds.values()) / total
    batch, crop = arguments.batch, arguments.crop
    print(f"ResNet-18, {batch} + {batch} crops of {crop} px, {arguments.threads} threads")
    for name, seconds in watch.seconds.items():
        print(f"{name:<28} {1000 * seconds / arguments.steps:8.2f} ms a step  {seconds / total:8.3%}")
    print(f"{'bookkeeping':<28} {'':>8}            {share:8.3%} of {total / arguments.steps:.3f} s (bound 2 %)")
    print(json.dumps({"step_s": total / arguments.steps, "share": share, "seconds": watch.seconds}))


def train(arguments: argparse.Namespace, watch: Stopwatch) -> float:
    """Run the loop with its bookkeeping timed; return its seconds."""
    machine = Machine(torch.device("cpu"))
    torch.manual_seed(0)
    network = build_network(ModelConfig(encoder="resnet18"), CLASSES)
    average = averaged_copy(network)
    config = OptimConfig(iterations=arguments.steps)
    optimizer = build_optimizer(network, config)
    sums = StepSums(machine.device)
    # All work of a step except method, optimiser and data
    sums.add = watch.timed("check and sums", sums.add)  # type: ignore[method-assign]
    fit.split_batch = watch.timed("parts of the batch", accumulate.split_batch)  # type: ignore[attr-defined]
    fit._gradients = watch.timed("list of gradients", fit._gradients)
    figures: Any = fit._DelayedFigures
    figures.after_step = watch.timed("figures and log", figures.after_step)
    set_rates = watch.timed("learning rates", partial(set_learning_rates, optimizer, config))
    size = (arguments.batch, 3, arguments.crop, arguments.crop)
    images = torch.randint(0, 256, size, dtype=torch.uint8)
    masks = torch.randint(0, len(CLASSES), (size[0], *size[2:]), dtype=torch.uint8)
    schedule = FitSchedule(
        iterations=arguments.steps,
        unlabeled_from=0,
        omega_at=lambda _: 3.0,
        seed=0,
        accumulation=1,
        ignore_index=255,
        log_every=10,
        validations=1,
        save_every=10**6,
        patience=None,
        max_skipped=10,
        channels_last=False,
    )
    labeled: Iterator[LabeledBatch] = repeat(LabeledBatch(images, masks))
    with tempfile.TemporaryDirectory() as folder, RunLog(Path(folder), iterations=arguments.steps) as log:
        started = time.perf_counter()
        fit.fit(
            machine,
            network,
            optimizer,
            set_rates,
            partial(guidedmix_step, method=MethodConfig(), classes=CLASSES),
            schedule=schedule,
            start=TrainingProgress(),
            sums=sums,
            labeled=labeled,
            unlabeled=repeat(UnlabeledBatch(images, torch.ones_like(masks, dtype=torch.bool))),
            hooks=Hooks(
                validate=lambda _: np.eye(len(CLASSES), dtype=np.int64),
                validate_rest=None,
                val_images=(1, 0),
                after_update=watch.timed(
                    "average of the weights",
                    lambda step: update_average(average, network, decay=0.99, step=step),
                ),
                after_validation=lambda _: None,
                save=lambda *_: None,
                describe_step=lambda _: "",
            ),
            stop=StopRequest(machine),
            log=log,
        )
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
