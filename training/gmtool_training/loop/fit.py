"""Training loop: steps, optimiser, logging, validation and checkpoints, independent of the method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gmtool.errors import GmtoolError, TerminatedError
from gmtool.report.metrics import Int64Array, iou_per_class, mean_iou
from gmtool.report.pictures import Example
from gmtool_training.data.batches import LabeledBatch, UnlabeledBatch
from gmtool_training.engine.accumulate import propagate, split_batch
from gmtool_training.engine.machine import Machine
from gmtool_training.loop.figures import LoggedMeans, StepSums
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.loop.schedule import FitSchedule
from gmtool_training.loop.stop import StopRequest
from gmtool_training.method.step import Step, StepInput
from gmtool_training.watch.log import RunLog, SilentLog

Progress = Callable[[int], None]
"""Function to call with the number of images done."""


@dataclass(frozen=True)
class FitResult:
    """Final progress and last validation of a run."""

    progress: TrainingProgress
    last: Int64Array
    """Confusion matrix of the last validation, of all validation images."""
    images: int | None = None
    """Number of images of the validations before the last, if not all."""
    worst: tuple[Example, ...] = ()
    """Images of the last validation with the lowest mIoU."""
    truth_sha256: str | None = None
    """SHA-256 of the ground truth of the validation images; None if not known."""


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the training loop."""

    validate: Callable[[Progress], Int64Array]
    """Returns the confusion matrix of the validation images, (C, C) int64; may raise `TerminatedError`."""
    validate_rest: Callable[[Progress], Int64Array] | None
    """The same of the images that only the last validation takes; None if every validation takes all."""
    val_images: tuple[int, int]
    """Numbers of images of `validate` and `validate_rest`."""
    after_update: Callable[[int], None]
    """Called after each update of the weights with the index of the step, from 0."""
    after_validation: Callable[[TrainingProgress], None]
    """Called after each validation, when it is logged and the weights are saved."""
    save: Callable[[TrainingProgress, float | None, bool], None]
    """Saves weights and state; arguments: progress, mIoU if just validated, whether it is the best so far."""
    describe_step: Callable[[int], str]
    """Returns the ids of the images of a step, by its index from 0."""


def fit(
    machine: Machine,
    network: nn.Module,
    optimizer: Optimizer,
    set_learning_rates: Callable[[int], None],
    step: Step,
    *,
    schedule: FitSchedule,
    start: TrainingProgress,
    sums: StepSums,
    labeled: Iterator[LabeledBatch],
    unlabeled: Iterator[UnlabeledBatch] | None,
    hooks: Hooks,
    stop: StopRequest,
    log: RunLog | SilentLog,
) -> FitResult:
    """Train for `schedule.iterations` steps, or until `schedule.patience` stops the run early.

    Args:
        machine: Device, precision and processes.
        network: Network in training; its forward pass has the precision of `machine`.
        optimizer: Optimiser of the network; fused, to skip steps without waiting for the device.
        set_learning_rates: Called with the number of steps done, before the first step and after each.
        step: Computes and propagates the losses of a batch or of a part of it.
        schedule: Length and intervals.
        start: Progress so far.
        sums: Figures of the steps since the last log event.
        labeled: Endless batches from step `start` on; each process gets its share.
        unlabeled: Endless batches from the first step with unlabeled images on; None for supervised training.
        hooks: Callbacks.
        stop: Requests to end the process (SIGTERM).
        log: Receives all figures.

    Raises:
        TerminatedError: SIGTERM; the state is saved.
        GmtoolError: Too many non-finite gradients in a row, or a batch cannot be read.
    """
    progress, matrix = start, None

    # Start, or go on where the run was stopped
    network.train()
    set_learning_rates(start.iteration)
    if not start.validated:
        progress, matrix = _validate_and_save(progress, schedule, hooks, log)
    figures = _DelayedFigures(schedule, sums, hooks, log)
    while not schedule.is_over(progress):
        # SIGTERM: save and end
        try:
            stop.raise_between_steps(progress.iteration)
        except TerminatedError:
            figures.flush()
            hooks.save(progress, None, False)
            raise
        # Forward and backward passes, update
        inputs = _next_inputs(machine, schedule, progress.iteration, labeled, unlabeled)
        parts = split_batch(machine, inputs, parts=schedule.accumulation, ignore_index=schedule.ignore_index)
        optimizer.zero_grad(set_to_none=True)
        losses = propagate(machine, network, step, parts)
        skip = sums.add(losses, _gradients(network), loss_scale=_loss_scale(machine))
        _update(machine, optimizer, skip=skip)
        hooks.after_update(progress.iteration)
        # Next learning rate, log
        done = progress.iteration + 1
        set_learning_rates(done)
        progress = replace(progress, iteration=done)
        images = len(inputs.labeled.images) + (0 if inputs.unlabeled is None else len(inputs.unlabeled))
        figures.after_step(
            done,
            images=images * machine.processes,
            rates={"omega": schedule.omega_at(done - 1), "lr": optimizer.param_groups[0]["lr"]},
        )
        # Validate and save
        if not (schedule.is_validated(done) or schedule.is_saved(done)):
            continue
        figures.flush()
        with figures.paused():
            if schedule.is_validated(done):
                progress, matrix = _validate_and_save(progress, schedule, hooks, log)
            else:
                hooks.save(progress, None, False)
    assert matrix is not None
    limited = hooks.val_images[0] if hooks.validate_rest is not None else None
    return FitResult(progress, matrix, limited)


def _validate_and_save(
    progress: TrainingProgress, schedule: FitSchedule, hooks: Hooks, log: RunLog | SilentLog
) -> tuple[TrainingProgress, Int64Array]:
    """Validate and save; return the progress after it, and the confusion matrix."""
    images, more = hooks.val_images
    events = {}
    try:
        with log.validating(images) as show:
            found = hooks.validate(show)
        after, is_best = progress.after_validation(_defined(mean_iou(found)))
        events["val"] = scores(found) | {"best": after.best_miou, "images": images}
        # The last weights are scored on all images
        if hooks.validate_rest is not None and schedule.is_over(after):
            with log.validating(more) as show:
                found = found + hooks.validate_rest(show)
            events["final"] = scores(found) | {"images": images + more}
    except TerminatedError:
        hooks.save(replace(progress, validated=False), None, False)
        raise
    hooks.save(after, _defined(mean_iou(found)), is_best)
    for kind, figures in events.items():
        log.event(kind, after.iteration, figures)
    hooks.after_validation(after)
    return after, found


class _DelayedFigures:
    """Figures that are logged one step late, so that the device never idles while they are read."""

    def __init__(self, schedule: FitSchedule, sums: StepSums, hooks: Hooks, log: RunLog | SilentLog) -> None:
        self._schedule, self._sums, self._hooks, self._log = schedule, sums, hooks, log
        self._pending: Callable[[], None] | None = None
        self._images, self._since = 0, time.monotonic()

    def after_step(self, done: int, *, images: int, rates: dict[str, float]) -> None:
        """Log pending figures; if `done` is a step to log, start to read its figures."""
        self.flush()
        self._images += images
        self._log.step(done)
        if self._schedule.is_logged(done):
            speed = {"images_per_s": self._images / (time.monotonic() - self._since)}
            self._images, self._since = 0, time.monotonic()
            self._pending = partial(self._record, self._sums.start_interval(), done, rates | speed)

    def flush(self) -> None:
        """Log pending figures.

        Raises:
            GmtoolError: Too many consecutive steps had a non-finite gradient.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block from images per second."""
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self._since += seconds
        self._log.validated(seconds)

    def _record(self, read: Callable[[], LoggedMeans], done: int, rates: dict[str, float]) -> None:
        means = read()
        self._log.event("train", done, means.means | rates | {"skipped": means.skipped})
        if means.skipped_in_a_row > self._schedule.max_skipped:
            raise GmtoolError(
                f"{means.skipped_in_a_row} steps in a row were skipped for non-finite gradients, the last with "
                f"{self._hooks.describe_step(done - 1)}: check these images, lower "
                "optim.lr, or --set run.precision=32-true"
            )


def _next_inputs(
    machine: Machine,
    schedule: FitSchedule,
    iteration: int,
    labeled: Iterator[LabeledBatch],
    unlabeled: Iterator[UnlabeledBatch] | None,
) -> StepInput:
    uses_unlabeled = unlabeled is not None and iteration >= schedule.unlabeled_from
    batch = LabeledBatch(*map(machine.to_device, next(labeled)))
    others, inside = None, None
    if unlabeled is not None and uses_unlabeled:
        others, inside = map(machine.to_device, next(unlabeled))
    if schedule.channels_last:
        batch = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
        others = None if others is None else others.contiguous(memory_format=torch.channels_last)
    random = np.random.default_rng([schedule.seed, 3, iteration])
    return StepInput(
        labeled=batch, unlabeled=others, omega=schedule.omega_at(iteration), random=random, inside=inside
    )


def _update(machine: Machine, optimizer: Optimizer, *, skip: Tensor) -> None:
    """Step the optimiser unless `skip` is 1.0, without waiting for the device.

    A fused optimiser reads `found_inf` on the device, as with torch's `GradScaler`, which sets it in 16-mixed.
    """
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    machine.update(optimizer)


def _gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def _loss_scale(machine: Machine) -> Tensor:
    one = torch.ones((), device=machine.device)
    # get_scale() would wait for the device
    return one if machine.scaler is None else machine.scaler.scale(one)


def scores(matrix: Int64Array) -> dict[str, Any]:
    """Return the mIoU and the IoU of each class, None where it is not defined."""
    return {
        "miou": _defined(mean_iou(matrix)),
        "iou": [_defined(value) for value in iou_per_class(matrix).tolist()],
    }


def _defined(miou: float) -> float | None:
    return None if math.isnan(miou) else miou
