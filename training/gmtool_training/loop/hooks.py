"""What a run does at the moments of its loop: average, validate, save, draw, and say what it worked on."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from lightning_fabric import Fabric
from torch import Tensor

from gmtool.classes import ClassSet
from gmtool.config import TrainConfig
from gmtool.data.datasets import TrainingData
from gmtool.files import write_atomically
from gmtool.nn.checkpoint import CheckpointName
from gmtool.nn.saving import save_checkpoint
from gmtool_training.data.batch_order import ids_in_batch
from gmtool_training.data.batches import labeled_batches, unlabeled_batches
from gmtool_training.data.cache import Readers
from gmtool_training.engine.average import update_average
from gmtool_training.loop.fit import Hooks
from gmtool_training.loop.progress import Progress
from gmtool_training.loop.resume import RunState, pack_state
from gmtool_training.loop.schedule import FitPlan
from gmtool_training.loop.sigterm import StopRequest
from gmtool_training.loop.validate import validate
from gmtool_training.pictures.curves import draw_training
from gmtool_training.pictures.pairs import PICTURE_NAME as PAIRS_NAME
from gmtool_training.pictures.pairs import draw_pairs

SECONDS_BETWEEN_PICTURES = 30.0
"""Drawing takes about a second; the last validation is always drawn."""


def build_hooks(
    config: TrainConfig,
    run_dir: Path,
    fabric: Fabric,
    state: RunState,
    plan: FitPlan,
    data: TrainingData,
    classes: ClassSet,
    read: Readers,
    stop: StopRequest,
    class_weights: Tensor | None,
) -> Hooks:
    """Return what `fit` calls; of several processes, the first one alone writes."""

    def save(progress: Progress, miou: float | None, is_best: bool) -> None:
        if not fabric.is_global_zero:
            return
        names: list[CheckpointName] = ["last", "best"] if is_best else ["last"]
        save_checkpoint(
            run_dir,
            names,
            state.saved_network,
            iteration=progress.iteration,
            miou=miou,
            model=config.model,
            classes=classes,
            labeled_sha256=data.labeled.sha256,
            state=pack_state(state, progress, data, config) if config.run.save_state else None,
            keep_last=config.run.keep_last,
        )

    def after_update(iteration: int) -> None:
        if state.average is not None:
            update_average(state.average, state.network, decay=config.optim.ema_decay, step=iteration)

    drawn = time.monotonic()

    def after_validation(progress: Progress) -> None:
        nonlocal drawn
        due = time.monotonic() - drawn > SECONDS_BETWEEN_PICTURES
        if plan.is_over(progress) or fabric.broadcast(due):  # the first process decides for all
            _draw(config, run_dir, fabric, state, data, classes, read, class_weights)
            drawn = time.monotonic()

    return Hooks(
        validate=partial(
            validate,
            fabric,
            state.saved_network,
            data.val,
            classes=classes,
            config=config.data,
            before_image=stop.raise_within_step,
            read=read.val,
        ),
        after_update=after_update,
        after_validation=after_validation,
        save=save,
        describe_step=partial(_describe_step, config, data, plan),
    )


def _draw(
    config: TrainConfig,
    run_dir: Path,
    fabric: Fabric,
    state: RunState,
    data: TrainingData,
    classes: ClassSet,
    read: Readers,
    class_weights: Tensor | None,
) -> None:
    """Draw the course of the run, and what the method makes of its first batch.

    Every process computes the pairs, since batch statistics may be shared; the first one writes.
    """
    if fabric.is_global_zero:
        draw_training(run_dir)
    if config.method.name == "supervised":
        return
    here, seed = replace(config.data, workers=0), config.run.seed
    labeled = labeled_batches(data.labeled.samples, classes, here, seed=seed, pin_memory=False, read=read.labeled)
    unlabeled = unlabeled_batches(data.unlabeled.samples, here, seed=seed, pin_memory=False, read=read.unlabeled)
    with fabric.autocast():
        picture = draw_pairs(
            state.network,
            state.average,
            next(labeled),
            next(unlabeled),
            method=config.method,
            classes=classes,
            lam=config.method.lambda_bound / 2,
            class_weights=class_weights,
        )
    if fabric.is_global_zero:
        write_atomically(run_dir / PAIRS_NAME, picture)


def _describe_step(config: TrainConfig, data: TrainingData, plan: FitPlan, iteration: int) -> str:
    ids = ids_in_batch(
        data.labeled.samples,
        None if config.method.name == "supervised" else data.unlabeled.samples,
        config.data,
        seed=config.run.seed,
        number=iteration,
        unlabeled_number=iteration - plan.unlabeled_from,
    )
    return ", ".join(ids)
