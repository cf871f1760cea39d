"""Train or resume a run, from its configuration to its report; everything is checked before a file is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from gmtool.artifact.run_config import load_run_config, refuse_missing_data, save_run_config
from gmtool.artifact.run_record import RunRecord, save_record
from gmtool.artifact.runs import CONFIG_NAME, require_empty
from gmtool.classes import ClassSet, load_classes
from gmtool.config import TrainConfig
from gmtool.console import announcing, remark
from gmtool.errors import CheckpointError, ConfigError, TerminatedError
from gmtool.nn.checkpoint import build_network, read_checkpoint
from gmtool.nn.initial_weights import load_starting_weights
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.timm_encoder import refuse_unknown_network
from gmtool.settings import Settings
from gmtool_training.data.batches import (
    LabeledBatch,
    UnlabeledBatch,
    UnreadableImages,
    labeled_batches,
    unlabeled_batches,
)
from gmtool_training.data.workers import explained_worker_failures
from gmtool_training.engine.build_step import build_step
from gmtool_training.engine.graphed_step import GraphedStep, can_graph
from gmtool_training.engine.kept_features import keep_features
from gmtool_training.engine.machine import Machine, in_precision, of_first_process
from gmtool_training.engine.memory import explained_memory
from gmtool_training.engine.optim import set_learning_rates
from gmtool_training.engine.recompute import recompute_activations
from gmtool_training.loop.finish import RunResult, finish
from gmtool_training.loop.fit import fit
from gmtool_training.loop.hooks import build_hooks
from gmtool_training.loop.lock import locked
from gmtool_training.loop.prepare import RunContext, build_context, build_state, checked_data, on_this_machine
from gmtool_training.loop.probe import run_probe
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.loop.resumable import (
    MOVED,
    finished,
    refuse_finished_probe,
    refuse_no_checkpoint,
    refuse_other_computation,
    saved_classes,
)
from gmtool_training.loop.resume import RunState, restore
from gmtool_training.loop.schedule import FitSchedule, build_schedule
from gmtool_training.loop.stop import stop_on_signals
from gmtool_training.loop.val_images import image_steps, step_passes, taken_images
from gmtool_training.watch.examples import ValidationImages
from gmtool_training.watch.log import RunLog, SilentLog
from gmtool_training.watch.open_tracker import open_tracker, save_tracker_id
from gmtool_training.watch.record import begun
from gmtool_training.watch.time_left import TimeLeft


def train(
    config: TrainConfig,
    run_dir: Path,
    *,
    prepare: Callable[[], None] = lambda: None,
    record: RunRecord | None = None,
) -> RunResult:
    """Train, and write settings, checkpoints, metrics and a report to `run_dir`.

    Under `torchrun` every process calls this; only the first one writes and prints.

    Args:
        config: Settings of the run.
        run_dir: Folder that is empty or does not exist.
        record: What the settings do not say: kind, recipe, reasons.
        prepare: Called once on each machine before the data is read, to generate or download it.

    Raises:
        TerminatedError: Ctrl-C or SIGTERM; the run can be resumed.
        GmtoolError: Wrong settings, data or weights. Before the first step, `run_dir` is not created.
    """
    # Device, data, network
    machine, config = on_this_machine(config)
    with machine.in_turn():
        if machine.is_first:
            require_empty(run_dir)
        if machine.is_first_here:
            prepare()
        classes = load_classes(config.data.classes)
        data = checked_data(config, classes, check=machine.is_first)
        for name in config.probe.encoders:
            refuse_unknown_network(name)
        torch.manual_seed(config.run.seed)
        network = build_network(config.model, classes)
        if not config.probe.encoders:  # the probe loads those that it compares
            remark(_starting_weights(network, config, classes))
    run = build_context(config, run_dir, machine, data, classes, network)
    # Everything is checked: write from here on
    with open_tracker(config, run_dir, is_first=machine.is_first) as tracker, _new_folder(run_dir, machine):
        if machine.is_first:
            if (run_dir / CONFIG_NAME).exists():
                raise ConfigError(
                    f"{run_dir}: another gmtool train started in this run folder: give another --out"
                )
            save_run_config(run_dir, config)
            save_record(run_dir, begun(record or RunRecord(), data))
            save_tracker_id(run_dir, config, tracker)
        return _run(replace(run, tracker=tracker), network, resumed=False)


def resume(run_dir: Path, changes: Settings | None = None) -> RunResult:
    """Resume a run from its newest undamaged checkpoint.

    Without changes the result equals that of an uninterrupted run, bit for bit on the same processor.

    Args:
        run_dir: Folder of the run.
        changes: Settings by dotted name, saved in its `config.toml`. Only `FREE_SETTINGS` may change. With another
            `optim.iterations`, learning rate, warm-up, omega and validations follow the new length from the next
            step on.

    Raises:
        CheckpointError: `run_dir` is not a run, or all its checkpoints are damaged.
        ConfigError: The run is finished, its data has changed, another process trains it, or a setting changed
            that is not free.
    """

    def read_config() -> TrainConfig:
        if not (run_dir / CONFIG_NAME).is_file():
            raise CheckpointError(f"{run_dir} is not a run: expected {run_dir / CONFIG_NAME}")
        return load_run_config(run_dir, changes)

    machine, config = on_this_machine(of_first_process(read_config))

    def read_classes() -> ClassSet:
        if config.method.name == "probe":
            refuse_finished_probe(run_dir)
            return load_classes(config.data.classes)
        refuse_no_checkpoint(run_dir)
        refuse_other_computation(run_dir, config)
        return saved_classes(run_dir)

    with locked(run_dir, machine):
        classes = of_first_process(read_classes)
        refuse_missing_data(config.data, run_dir, remedy=MOVED)
        with machine.in_turn():
            data = checked_data(config, classes, check=machine.is_first)
        network = build_network(config.model, classes)
        if config.method.name == "probe":  # nothing of it was saved: it starts anew, with the same draws
            remark(f"{run_dir}: a probe saves nothing until it is fitted: it starts over")
            remark(_starting_weights(network, config, classes))
        run = build_context(config, run_dir, machine, data, classes, network)
        with open_tracker(config, run_dir, is_first=machine.is_first) as tracker:
            if machine.is_first:
                save_tracker_id(run_dir, config, tracker)
            return _run(replace(run, tracker=tracker), network, resumed=True)


@contextmanager
def _new_folder(run_dir: Path, machine: Machine) -> Iterator[None]:
    """Make the run folder and hold its lock within the block."""
    if machine.is_first:
        run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir, machine):
        yield


def _run(run: RunContext, network: GuidedMixNet, *, resumed: bool) -> RunResult:
    config, machine, data = run.config, run.machine, run.data
    if config.method.name == "probe":
        started = time.monotonic()
        return finish(run, run_probe(run, network, started=started), time.monotonic() - started)
    # Schedule and state; a resumed run continues from its checkpoint
    schedule = build_schedule(config, run.classes)
    state = build_state(config, machine, network)
    start = _restored(run, state, schedule) if resumed else TrainingProgress()
    # Wrap the network for memory, speed and several processes
    if config.data.kept_crops:
        keep_features(network, config)
    if config.run.activation_checkpointing:
        recompute_activations(network)
    compiled = torch.compile(network) if config.run.compile else network
    mixed = in_precision(cast(nn.Module, compiled), machine)
    # Train
    unreadable, seen = UnreadableImages(data.unlabeled), ValidationImages(data.val)
    started = time.monotonic()
    with (
        _open_log(run, schedule, start) as log,
        stop_on_signals(machine, log.stopping) as stop,
        _advising_to_resume(run),
        explained_worker_failures(run.run_dir),
        explained_memory(config),
        # Ends the processes that decode; of a loader that is left to the collector, each one is waited for 5 s
        _labeled_batches(run, start) as labeled,
        _unlabeled_batches(run, schedule, start, unreadable) as unlabeled,
    ):
        step = build_step(
            config.method, run.classes, machine, average=state.average, class_weights=run.class_weights
        )
        hooks = build_hooks(run, state, schedule, stop, log, seen)
        if can_graph(config, machine):
            step = graphed = GraphedStep(step, config.method)
            hooks = replace(hooks, validate=graphed.released_before(hooks.validate))
        result = fit(
            machine,
            mixed,
            state.optimizer,
            partial(set_learning_rates, state.optimizer, config.optim),
            step,
            schedule=schedule,
            start=start,
            sums=state.sums,
            labeled=labeled,
            unlabeled=unlabeled,
            hooks=hooks,
            stop=stop,
            log=log,
        )
    seconds = time.monotonic() - started
    # Report
    machine.wait_for_all()  # the first process has saved
    unreadable.remark_count()
    result = replace(result, worst=seen.worst, truth_sha256=seen.truth_sha256(machine))
    return finish(run, result, seconds, earlier_s=log.earlier_s)


def _starting_weights(network: GuidedMixNet, config: TrainConfig, classes: ClassSet) -> str:
    """Load the weights that the settings name; return one line about them."""
    with announcing("loading weights"):
        return load_starting_weights(network, config.model, classes)


@contextmanager
def _advising_to_resume(run: RunContext) -> Iterator[None]:
    """Let the message of a stopped and saved run name the command that goes on."""
    try:
        yield
    except TerminatedError as error:
        if not run.machine.is_first:  # it sees no checkpoint, and says nothing
            raise
        done = f"{error} after {read_checkpoint(run.run_dir, 'last').iteration} of {run.config.optim.iterations}"
        remedy = f"gmtool train --resume {run.run_dir} goes on there"
        if not run.config.run.save_state:
            remedy = "it cannot be resumed, since run.save_state is false"
        raise type(error)(f"{done} iterations, saved: {remedy}") from error


def _restored(run: RunContext, state: RunState, schedule: FitSchedule) -> TrainingProgress:
    """Restore the state of a run and save its settings, which may have changed; return its progress."""
    start = restore(run.run_dir, state, run.data, run.machine)
    if schedule.is_over(start):
        raise finished(run.run_dir, start, run.config)
    if run.machine.is_first:
        save_run_config(run.run_dir, run.config)
    remark(f"resuming {run.run_dir} after {start.iteration} of {schedule.iterations} iterations")
    return start


def _labeled_batches(run: RunContext, start: TrainingProgress) -> AbstractContextManager[Iterator[LabeledBatch]]:
    return closing(
        labeled_batches(
            run.data.labeled.samples,
            run.classes,
            run.config.data,
            seed=run.config.run.seed,
            pin_memory=run.machine.device.type == "cuda",
            start=start.iteration,
            share=(run.machine.rank, run.machine.processes),
            read=run.readers.labeled,
        )
    )


def _unlabeled_batches(
    run: RunContext, schedule: FitSchedule, start: TrainingProgress, unreadable: UnreadableImages
) -> AbstractContextManager[Iterator[UnlabeledBatch] | None]:
    """Give batches from the first step with unlabeled images on; None for supervised training."""
    if run.config.method.name == "supervised":
        return nullcontext()
    return closing(
        unlabeled_batches(
            run.data.unlabeled.samples,
            run.config.data,
            seed=run.config.run.seed,
            pin_memory=run.machine.device.type == "cuda",
            start=max(0, start.iteration - schedule.unlabeled_from),
            share=(run.machine.rank, run.machine.processes),
            read=run.readers.unlabeled,
            unreadable=unreadable,
        )
    )


def _open_log(run: RunContext, schedule: FitSchedule, start: TrainingProgress) -> RunLog | SilentLog:
    if not run.machine.is_first:
        return SilentLog()
    samples = run.data.val.samples
    taken = taken_images(samples, run.config, unlabeled_from=schedule.unlabeled_from)
    if len(taken) < len(samples):
        remark(
            f"validation: {len(taken)} of {len(samples)} images, and all after the last step; "
            "run.val_limit sets another number, 0 for all"
        )
    labeled, unlabeled = (step_passes(run.config, unlabeled=kind) for kind in (False, True))
    time_left = TimeLeft(
        iterations=schedule.iterations,
        unlabeled_from=schedule.unlabeled_from,
        validations=schedule.validations,
        unlabeled_cost=unlabeled / labeled,
        validation_cost=len(taken) * image_steps(samples, run.config),
        whole_cost=len(samples) / len(taken),
    )
    return RunLog(
        run.run_dir,
        iterations=schedule.iterations,
        start=start.iteration,
        time_left=time_left,
        class_names=run.classes.names,
        tracker=run.tracker,
        on_processor=run.machine.device.type == "cpu",
    )
