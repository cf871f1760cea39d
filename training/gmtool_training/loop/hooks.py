"""Callbacks of the training loop: average weights, validate, save, draw pictures, name the images of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

from gmtool.files import write_atomically
from gmtool.nn.checkpoint import CheckpointName
from gmtool.nn.saving import save_checkpoint
from gmtool.report.metrics import Int64Array
from gmtool_training.data.batch_order import ids_in_batch
from gmtool_training.data.batches import labeled_batches, unlabeled_batches
from gmtool_training.engine.average import update_average
from gmtool_training.loop.fit import Hooks
from gmtool_training.loop.prepare import RunContext
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.loop.resume import RunState, pack_state
from gmtool_training.loop.schedule import FitSchedule
from gmtool_training.loop.stop import StopRequest
from gmtool_training.loop.val_images import taken_images
from gmtool_training.loop.validate import validate
from gmtool_training.pictures.curves import draw_training
from gmtool_training.pictures.pairs import PICTURE_NAME as PAIRS_NAME
from gmtool_training.pictures.pairs import draw_pairs
from gmtool_training.pictures.worst import draw_worst
from gmtool_training.watch.examples import ValidationImages
from gmtool_training.watch.log import WORST, RunLog, SilentLog

SECONDS_BETWEEN_PICTURES = 30.0
"""Shortest time between two drawings, which take about a second; the last validation is always drawn."""


def build_hooks(
    run: RunContext,
    state: RunState,
    schedule: FitSchedule,
    stop: StopRequest,
    log: RunLog | SilentLog,
    seen: ValidationImages,
) -> Hooks:
    """Return the callbacks of `fit`; of several processes, only the first one writes files.

    Args:
        run: Settings, folder, device, data.
        state: Network and optimiser.
        schedule: Length and intervals.
        stop: Requests to end the process.
        log: Receives pictures.
        seen: Receives the images of each validation.
    """
    config = run.config

    def save(progress: TrainingProgress, miou: float | None, is_best: bool) -> None:
        if not run.machine.is_first:
            return
        names: list[CheckpointName] = ["last", "best"] if is_best else ["last"]
        save_checkpoint(
            run.run_dir,
            names,
            state.saved_network,
            iteration=progress.iteration,
            miou=miou,
            model=config.model,
            classes=run.classes,
            labeled_sha256=run.data.labeled.sha256,
            state=pack_state(state, progress, run.data, config) if config.run.save_state else None,
            keep_last=config.run.keep_last,
        )

    def after_update(iteration: int) -> None:
        if state.average is not None:
            update_average(state.average, state.network, decay=config.optim.ema_decay, step=iteration)

    drawn = time.monotonic()  # of the last pictures

    def after_validation(progress: TrainingProgress) -> None:
        nonlocal drawn
        due = time.monotonic() - drawn > SECONDS_BETWEEN_PICTURES
        if schedule.is_over(progress) or run.machine.broadcast(due):  # the first process decides for all
            log.drawing()
            _draw(run, state, log, seen, progress.iteration)
            drawn = time.monotonic()  # of the last pictures

    # Images of every validation, and those that only the last one takes
    taken = taken_images(run.data.val.samples, config, unlabeled_from=schedule.unlabeled_from)
    rest = sorted({*range(len(run.data.val.samples))} - {*taken})

    def validate_images(indices: Sequence[int], show: Callable[[int], None]) -> Int64Array:
        counter = count()
        if indices is taken:
            seen.clear()

        def before_image() -> None:
            stop.raise_within_step()
            show(run.machine.processes * next(counter))

        return validate(
            run.machine,
            state.saved_network,
            run.data.val,
            classes=run.classes,
            config=config.data,
            before_image=before_image,
            read=run.readers.val,
            indices=indices,
            seen=seen,
        )

    return Hooks(
        validate=partial(validate_images, taken),
        validate_rest=partial(validate_images, rest) if rest else None,
        val_images=(len(taken), len(rest)),
        after_update=after_update,
        after_validation=after_validation,
        save=save,
        describe_step=partial(_describe_step, run, schedule),
    )


def _draw(
    run: RunContext, state: RunState, log: RunLog | SilentLog, seen: ValidationImages, iteration: int
) -> None:
    """Draw the training curves, the worst validation images, and the pseudo masks of the first batch.

    All processes compute the pseudo masks, since batch statistics may be shared; the first one writes.
    """
    if run.machine.is_first:
        draw_training(run.run_dir)
        if seen.worst:
            log.png(WORST, iteration, draw_worst(seen.worst, run.classes))
    if run.config.method.name == "supervised":
        return
    here, seed = replace(run.config.data, workers=0), run.config.run.seed
    labeled = labeled_batches(
        run.data.labeled.samples, run.classes, here, seed=seed, pin_memory=False, read=run.readers.labeled
    )
    unlabeled = unlabeled_batches(
        run.data.unlabeled.samples, here, seed=seed, pin_memory=False, read=run.readers.unlabeled
    )
    with run.machine.autocast():
        picture = draw_pairs(
            state.network,
            state.average,
            next(labeled),
            next(unlabeled),
            method=run.config.method,
            classes=run.classes,
            lam=run.config.method.lambda_bound / 2,
            class_weights=run.class_weights,
        )
    if run.machine.is_first:
        write_atomically(run.run_dir / PAIRS_NAME, picture)
        log.png("pseudo masks", iteration, picture)


def _describe_step(run: RunContext, schedule: FitSchedule, iteration: int) -> str:
    ids = ids_in_batch(
        run.data.labeled.samples,
        None if run.config.method.name == "supervised" else run.data.unlabeled.samples,
        run.config.data,
        seed=run.config.run.seed,
        number=iteration,
        unlabeled_number=iteration - schedule.unlabeled_from,
    )
    return ", ".join(ids)
