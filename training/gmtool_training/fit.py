"""The training loop. It knows optimisers, logs, validation and checkpoints, but nothing of the method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gmtool.errors import GmtoolError
from gmtool.metrics import Int64Array, mean_iou
from gmtool_training.data import LabeledBatch
from gmtool_training.log import RunLog
from gmtool_training.losses import StepLosses
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

    best_miou: float
    best_iteration: int
    last: Int64Array
    """Confusion matrix of the last validation."""


def fit(
    fabric: Fabric,
    network: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    step: Step,
    *,
    plan: FitPlan,
    labeled: Iterator[LabeledBatch],
    unlabeled: Iterator[Tensor] | None,
    validate: Callable[[], Int64Array],
    save: Callable[[int, float, bool], None],
    log: RunLog,
) -> FitResult:
    """Train for `plan.iterations` steps.

    Args:
        fabric: Carries device, precision and processes.
        network: Set up by `fabric`.
        optimizer: Set up by `fabric`.
        schedule: Stepped after each optimiser step.
        step: Computes and propagates the losses of one step.
        plan: Lengths and intervals.
        labeled: Endless batches.
        unlabeled: Endless batches; None for supervised training.
        validate: Returns the confusion matrix of the validation set.
        save: Called after a validation with (steps done, mIoU, whether it is the best so far).
        log: Receives every figure.

    Raises:
        GmtoolError: The loss is not finite, or a batch could not be read.
    """
    best_miou, best_iteration, matrix = float("-inf"), 0, None
    network.train()
    images, since = 0, time.monotonic()
    for iteration in range(plan.iterations):
        unlabeled_images = None
        if unlabeled is not None and iteration >= plan.unlabeled_from:
            unlabeled_images = fabric.to_device(next(unlabeled))
        inputs = StepInput(
            labeled=LabeledBatch(*fabric.to_device(tuple(next(labeled)))),
            unlabeled=unlabeled_images,
            omega=plan.omega_at(iteration),
            random=np.random.default_rng([plan.seed, 3, iteration]),
        )
        optimizer.zero_grad(set_to_none=True)
        losses = step(network, inputs, fabric.backward)
        optimizer.step()
        schedule.step()
        done = iteration + 1
        images += len(inputs.labeled.images) + (0 if unlabeled_images is None else len(unlabeled_images))
        log.step(done)
        if not (plan.is_logged(done) or plan.is_validated(done)):
            continue
        figures = _loss_figures(losses, done)
        if plan.is_logged(done):
            speed = images / (time.monotonic() - since)
            rates = {"lr": optimizer.param_groups[0]["lr"], "images_per_s": speed}
            log.event("train", done, figures | rates)
            images, since = 0, time.monotonic()
        if plan.is_validated(done):
            started = time.monotonic()
            matrix = validate()
            miou = mean_iou(matrix)
            is_best = not miou <= best_miou  # so that anything replaces "no pixel was scored"
            if is_best:
                best_miou, best_iteration = miou, done
            save(done, miou, is_best)
            log.event("val", done, {"miou": _defined(miou), "best": _defined(best_miou)})
            since += time.monotonic() - started  # validation is not training time
    assert matrix is not None
    return FitResult(best_miou, best_iteration, matrix)


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
