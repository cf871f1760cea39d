"""The training loop. It knows optimisers, logs, validation and checkpoints, but nothing of the method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from gmtool.errors import GmtoolError, TerminatedError
from gmtool.report.metrics import Int64Array, mean_iou
from gmtool_training.data.batches import LabeledBatch, UnlabeledBatch
from gmtool_training.engine.accumulate import propagate, split_batch
from gmtool_training.engine.machine import loss_scaler
from gmtool_training.loop.figures import Reading, Tally
from gmtool_training.loop.log import RunLog, SilentLog
from gmtool_training.loop.progress import Progress
from gmtool_training.loop.schedule import FitPlan
from gmtool_training.loop.sigterm import StopRequest
from gmtool_training.method.step import Step, StepInput


@dataclass(frozen=True)
class FitResult:
    """How the run scored."""

    progress: Progress
    last: Int64Array
    """Confusion matrix of the last validation."""


@dataclass(frozen=True)
class Hooks:
    """What the loop calls at its moments."""

    validate: Callable[[], Int64Array]
    """Returns the confusion matrix of the validation set; may raise `TerminatedError`."""
    after_update: Callable[[int], None]
    """Called after each update of the weights, with the number of steps done before."""
    after_validation: Callable[[Progress], None]
    """Called after each validation, once it is logged and the weights are saved."""
    save: Callable[[Progress, float | None, bool], None]
    """Keeps weights and state: (where the run stands, mIoU if just validated, whether it is the best so far)."""
    describe_step: Callable[[int], str]
    """Says on which images a step worked, by its index from 0."""


def fit(
    fabric: Fabric,
    network: nn.Module,
    optimizer: Optimizer,
    set_learning_rates: Callable[[int], None],
    step: Step,
    *,
    plan: FitPlan,
    start: Progress,
    tally: Tally,
    labeled: Iterator[LabeledBatch],
    unlabeled: Iterator[UnlabeledBatch] | None,
    hooks: Hooks,
    stop: StopRequest,
    log: RunLog | SilentLog,
) -> FitResult:
    """Train until `plan.iterations` steps are done, or until `plan.patience` is.

    Args:
        fabric: Carries device, precision and processes.
        network: Set up by `fabric`.
        optimizer: Set up by `fabric`; fused, so that it can be told on the device to skip a step.
        set_learning_rates: Called with the number of steps done, before the first step and after each.
        step: Computes and propagates the losses of a batch or of a part of it.
        plan: Lengths and intervals.
        start: Where the run stands.
        tally: What the steps since the last log gave.
        labeled: Endless batches, from step `start` on; of several processes, each has its share.
        unlabeled: Endless batches, from the first step with unlabeled images on; None for supervised training.
        hooks: What to call when.
        stop: Whether the process was asked to end.
        log: Receives every figure.

    Raises:
        TerminatedError: The process was asked to end; everything was saved before.
        GmtoolError: Too many gradients in a row are not finite, or a batch could not be read.
    """
    progress, matrix = start, None

    def validate_and_save() -> Int64Array:
        nonlocal progress
        try:
            found = hooks.validate()
        except TerminatedError:
            hooks.save(replace(progress, validated=False), None, False)
            raise
        miou = _defined(mean_iou(found))
        progress, is_best = progress.after_validation(miou)
        hooks.save(progress, miou, is_best)
        log.event("val", progress.iteration, {"miou": miou, "best": progress.best_miou})
        hooks.after_validation(progress)
        return found

    network.train()
    set_learning_rates(start.iteration)
    if not start.validated:
        matrix = validate_and_save()
    figures = _DelayedFigures(plan, tally, hooks, log)
    while not plan.is_over(progress):
        try:
            stop.raise_between_steps(progress.iteration)
        except TerminatedError:
            figures.flush()
            hooks.save(progress, None, False)
            raise
        inputs = _next_inputs(fabric, plan, progress.iteration, labeled, unlabeled)
        parts = split_batch(fabric, inputs, parts=plan.accumulation, ignore_index=plan.ignore_index)
        optimizer.zero_grad(set_to_none=True)
        losses = propagate(fabric, network, step, parts)
        _update(optimizer, skip=tally.add(losses, _gradients(network), loss_scale=_loss_scale(fabric)))
        hooks.after_update(progress.iteration)
        done = progress.iteration + 1
        set_learning_rates(done)
        progress = replace(progress, iteration=done)
        images = len(inputs.labeled.images) + (0 if inputs.unlabeled is None else len(inputs.unlabeled))
        figures.after_step(
            done,
            images=images * fabric.world_size,
            rates={"omega": losses.omega, "lr": optimizer.param_groups[0]["lr"]},
        )
        if not (plan.is_validated(done) or plan.is_saved(done)):
            continue
        figures.flush()
        with figures.paused():
            if plan.is_validated(done):
                matrix = validate_and_save()
            else:
                hooks.save(progress, None, False)
    assert matrix is not None
    return FitResult(progress, matrix)


class _DelayedFigures:
    """Figures on their way to the log: read from the device once it works on the step after them."""

    def __init__(self, plan: FitPlan, tally: Tally, hooks: Hooks, log: RunLog | SilentLog) -> None:
        self._plan, self._tally, self._hooks, self._log = plan, tally, hooks, log
        self._pending: Callable[[], None] | None = None
        self._images, self._since = 0, time.monotonic()

    def after_step(self, done: int, *, images: int, rates: dict[str, float]) -> None:
        """Log what is pending; if the plan says so, begin to read what the steps up to `done` gave."""
        self.flush()
        self._images += images
        self._log.step(done)
        if self._plan.is_logged(done):
            speed = {"images_per_s": self._images / (time.monotonic() - self._since)}
            self._images, self._since = 0, time.monotonic()
            self._pending = partial(self._record, self._tally.start_reading(), done, rates | speed)

    def flush(self) -> None:
        """Log what is pending.

        Raises:
            GmtoolError: Too many of the last steps had a gradient that is not finite.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time in this block out of images/s: validating and saving is not training."""
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started

    def _record(self, read: Callable[[], Reading], done: int, rates: dict[str, float]) -> None:
        reading = read()
        self._log.event("train", done, reading.means | rates | {"skipped": reading.skipped})
        if reading.skipped_in_a_row > self._plan.max_skipped:
            raise GmtoolError(
                f"{reading.skipped_in_a_row} steps in a row had a gradient that is not finite and were "
                f"skipped, the last with {self._hooks.describe_step(done - 1)}: look at these images, lower "
                "optim.lr, or --set run.precision=32-true"
            )


def _next_inputs(
    fabric: Fabric,
    plan: FitPlan,
    iteration: int,
    labeled: Iterator[LabeledBatch],
    unlabeled: Iterator[UnlabeledBatch] | None,
) -> StepInput:
    uses_unlabeled = unlabeled is not None and iteration >= plan.unlabeled_from
    batch = LabeledBatch(*fabric.to_device(tuple(next(labeled))))
    others, inside = None, None
    if unlabeled is not None and uses_unlabeled:
        others, inside = fabric.to_device(tuple(next(unlabeled)))
    if plan.channels_last:
        batch = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
        others = None if others is None else others.contiguous(memory_format=torch.channels_last)
    random = np.random.default_rng([plan.seed, 3, iteration])
    return StepInput(labeled=batch, unlabeled=others, omega=plan.omega_at(iteration), random=random, inside=inside)


def _update(optimizer: Optimizer, *, skip: Tensor) -> None:
    """Step the optimiser unless `skip` is 1.0; nothing waits for the device.

    A fused optimiser reads `found_inf` on the device, as torch's `GradScaler` has it do. In 16-mixed the scaler
    sets it itself.
    """
    inner = cast(Any, optimizer).optimizer  # Fabric's wrapper does not pass attributes on
    inner.found_inf = skip
    optimizer.step()


def _gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def _loss_scale(fabric: Fabric) -> Tensor:
    one = torch.ones((), device=fabric.device)
    scaler = loss_scaler(fabric)
    return one if scaler is None else scaler.scale(one)  # get_scale() would wait for the device


def _defined(miou: float) -> float | None:
    return None if math.isnan(miou) else miou
