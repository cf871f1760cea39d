"""The training loop. It knows optimisers, logs, validation and checkpoints, but nothing of the method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gmtool.errors import GmtoolError, TerminatedError
from gmtool.metrics import Int64Array, mean_iou
from gmtool_training.data import LabeledBatch
from gmtool_training.log import RunLog
from gmtool_training.losses import StepLosses
from gmtool_training.resume import Progress
from gmtool_training.step import Step, StepInput


@dataclass(frozen=True)
class FitPlan:
    """How long to train, and how often to stop and look."""

    iterations: int
    unlabeled_from: int
    """First step that gets unlabeled images; `iterations` for none."""
    omega_at: Callable[[int], float]
    """Weight of the unlabeled loss by step."""
    seed: int
    log_every: int
    validations: int
    save_every: int

    def is_saved(self, done: int) -> bool:
        """Return whether the last checkpoint is saved after `done` steps, validation or not."""
        return done % self.save_every == 0

    def is_logged(self, done: int) -> bool:
        """Return whether figures are recorded after `done` steps."""
        return done % self.log_every == 0 or done == self.iterations

    def is_validated(self, done: int) -> bool:
        """Return whether validation follows `done` steps: evenly spaced, the last after the last step."""
        number = done * self.validations // self.iterations
        return number > (done - 1) * self.validations // self.iterations


@dataclass(frozen=True)
class FitResult:
    """How the run scored."""

    progress: Progress
    last: Int64Array
    """Confusion matrix of the last validation."""


Save = Callable[[Progress, float | None, bool], None]
"""Keeps weights and state: (where the run stands, mIoU if just validated, whether it is the best so far)."""


def fit(
    fabric: Fabric,
    network: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    step: Step,
    *,
    plan: FitPlan,
    start: Progress,
    labeled: Iterator[LabeledBatch],
    unlabeled: Iterator[Tensor] | None,
    validate: Callable[[], Int64Array],
    save: Save,
    raise_if_asked_to_stop: Callable[[], None],
    log: RunLog,
) -> FitResult:
    """Train until `plan.iterations` steps are done.

    Args:
        fabric: Carries device, precision and processes.
        network: Set up by `fabric`.
        optimizer: Set up by `fabric`.
        schedule: Stepped after each optimiser step.
        step: Computes and propagates the losses of one step.
        plan: Lengths and intervals.
        start: Where the run stands.
        labeled: Endless batches, from step `start` on.
        unlabeled: Endless batches, from the first step with unlabeled images on; None for supervised training.
        validate: Returns the confusion matrix of the validation set; may raise `TerminatedError`.
        save: Keeps weights and state.
        raise_if_asked_to_stop: Raises `TerminatedError` when the process was asked to end.
        log: Receives every figure.

    Raises:
        TerminatedError: The process was asked to end; everything was saved before.
        GmtoolError: The loss is not finite, or a batch could not be read.
    """
    progress, matrix = start, None

    def validate_and_save() -> Int64Array:
        nonlocal progress
        try:
            found = validate()
        except TerminatedError:
            save(replace(progress, validated=False), None, False)
            raise
        miou = _defined(mean_iou(found))
        is_best = progress.best_iteration == 0 or (miou or 0.0) > (progress.best_miou or 0.0)
        if is_best:
            progress = replace(progress, best_miou=miou, best_iteration=progress.iteration)
        progress = replace(progress, validated=True)
        save(progress, miou, is_best)
        log.event("val", progress.iteration, {"miou": miou, "best": progress.best_miou})
        return found

    network.train()
    if not start.validated:
        matrix = validate_and_save()
    images, since = 0, time.monotonic()
    while progress.iteration < plan.iterations:
        try:
            raise_if_asked_to_stop()
        except TerminatedError:
            save(progress, None, False)
            raise
        inputs = _next_inputs(fabric, plan, progress.iteration, labeled, unlabeled)
        optimizer.zero_grad(set_to_none=True)
        losses = step(network, inputs, fabric.backward)
        optimizer.step()
        schedule.step()
        done = progress.iteration + 1
        progress = replace(progress, iteration=done)
        images += len(inputs.labeled.images) + (0 if inputs.unlabeled is None else len(inputs.unlabeled))
        log.step(done)
        if not (plan.is_logged(done) or plan.is_validated(done) or plan.is_saved(done)):
            continue
        figures = _loss_figures(losses, done)
        if plan.is_logged(done):
            speed = images / (time.monotonic() - since)
            rates = {"lr": optimizer.param_groups[0]["lr"], "images_per_s": speed}
            log.event("train", done, figures | rates)
            images, since = 0, time.monotonic()
        paused = time.monotonic()
        if plan.is_validated(done):
            matrix = validate_and_save()
        elif plan.is_saved(done):
            save(progress, None, False)
        since += time.monotonic() - paused  # validating and saving is not training time
    assert matrix is not None
    return FitResult(progress, matrix)


def _next_inputs(
    fabric: Fabric,
    plan: FitPlan,
    iteration: int,
    labeled: Iterator[LabeledBatch],
    unlabeled: Iterator[Tensor] | None,
) -> StepInput:
    uses_unlabeled = unlabeled is not None and iteration >= plan.unlabeled_from
    return StepInput(
        labeled=LabeledBatch(*fabric.to_device(tuple(next(labeled)))),
        unlabeled=fabric.to_device(next(unlabeled)) if unlabeled is not None and uses_unlabeled else None,
        omega=plan.omega_at(iteration),
        random=np.random.default_rng([plan.seed, 3, iteration]),
    )


def _defined(miou: float) -> float | None:
    return None if math.isnan(miou) else miou


def _loss_figures(losses: StepLosses, done: int) -> dict[str, float | None]:
    """Return the terms as numbers. Waits for the device: only when logging, and before weights are saved."""
    total = losses.total.item()
    if not math.isfinite(total):
        raise GmtoolError(
            f"the loss is {total} after {done} steps (cross-entropy {losses.cross_entropy.item():.3g}, "
            f"unlabeled {losses.unlabeled.item():.3g}): lower optim.lr, or --set run.precision=32-true"
        )
    return {
        "loss": total,
        "ce": losses.cross_entropy.item(),
        "cla": losses.classification.item(),
        "dec": losses.labeled_decoupling.item(),
        "usup": losses.unlabeled.item(),
        "omega": losses.omega,
    }
