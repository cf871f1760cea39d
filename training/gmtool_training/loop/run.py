"""A training run from its configuration to its report: everything is checked before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from gmtool.artifact.run_config import load_run_config, refuse_missing_data, save_run_config
from gmtool.artifact.runs import CONFIG_NAME, require_empty
from gmtool.classes import ClassSet, load_classes
from gmtool.config import MethodConfig, TrainConfig
from gmtool.console import remark
from gmtool.data.datasets import TrainingData
from gmtool.errors import CheckpointError, ConfigError
from gmtool.nn.checkpoint import build_network, read_checkpoint
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.weights import load_encoder_weights
from gmtool.report.report import BestScore, IoUReport, Provenance, percent
from gmtool.report.tables import save_report
from gmtool.settings import Settings
from gmtool_training.data.batches import UnreadableImages, labeled_batches, unlabeled_batches
from gmtool_training.data.cache import Readers, open_readers
from gmtool_training.data.workers import explained_worker_failures
from gmtool_training.engine.optim import set_learning_rates
from gmtool_training.engine.recompute import recompute_activations
from gmtool_training.loop.fit import FitResult, fit
from gmtool_training.loop.hooks import build_hooks
from gmtool_training.loop.lock import locked
from gmtool_training.loop.log import RunLog, SilentLog
from gmtool_training.loop.prepare import build_state, checked_data, on_this_machine
from gmtool_training.loop.progress import Progress
from gmtool_training.loop.resume import refuse_other_computation, restore, saved_classes
from gmtool_training.loop.schedule import FitPlan, build_plan
from gmtool_training.loop.sigterm import stop_on_sigterm
from gmtool_training.loop.validation_memory import refuse_too_large_images
from gmtool_training.method.class_weights import labeled_class_weights
from gmtool_training.method.step import Step, guidedmix_step, supervised_step


@dataclass(frozen=True)
class RunResult:
    """What a finished run can say."""

    run_dir: Path
    report: IoUReport
    """Scores of the last weights."""
    seconds: float
    """Wall-clock time of the training loop, validations included."""

    @property
    def best_miou(self) -> float | None:
        """Best validation mIoU in [0, 1]; None while no pixel was scored."""
        return self.report.best.miou if self.report.best else None

    def __fspath__(self) -> str:
        """Return the run folder: the result is taken wherever its path is."""
        return str(self.run_dir)


def train(config: TrainConfig, run_dir: Path, *, prepare: Callable[[], None] = lambda: None) -> RunResult:
    """Train, and leave in `run_dir` settings, checkpoints, metrics and a report.

    Under `torchrun` every process calls this; the first one alone writes and speaks.

    Args:
        config: The whole run.
        run_dir: A folder that does not exist yet, or is empty.
        prepare: Called once before the data is looked at: generates or downloads it.

    Raises:
        TerminatedError: SIGTERM; the run can be resumed.
        GmtoolError: Something is wrong with settings, data or weights. If it was found before the first
            step, `run_dir` was not created.
    """
    fabric, config = on_this_machine(config)
    with fabric.rank_zero_first():
        if fabric.is_global_zero:
            require_empty(run_dir)
            prepare()
        classes = load_classes(config.data.classes)
        data = checked_data(config, classes, check=fabric.is_global_zero)
        torch.manual_seed(config.run.seed)
        network = build_network(config.model, classes)
        remark(load_encoder_weights(network.encoder, config.model.encoder, config.model.encoder_weights))
    refuse_too_large_images(data.val.samples, config, fabric.device)
    weights = labeled_class_weights(data.labeled.samples, classes, config)
    read = open_readers(data, classes, config.data)
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir, fabric):
        if fabric.is_global_zero:
            if (run_dir / CONFIG_NAME).exists():
                raise ConfigError(
                    f"{run_dir}: another gmtool train used this run folder meanwhile: give another --out"
                )
            save_run_config(run_dir, config)
        return _run(config, run_dir, fabric, network, data, classes, read, weights, resumed=False)


def resume(run_dir: Path, changes: Settings | None = None) -> RunResult:
    """Go on with a run from its newest whole checkpoint.

    Without changes the result is that of a run that was never stopped, bit for bit on the same processor.

    Args:
        run_dir: A run that was started before.
        changes: Settings by dotted name over those of its `config.toml`, which is written anew with them. Only
            `FREE_SETTINGS` may differ from those that the run was started with. With another
            `optim.iterations`, what depends on the length of a run (learning rate, warm-up, weight of the
            unlabeled loss, moments of validation) is from the next step on that of a run of the new length.

    Raises:
        CheckpointError: `run_dir` is no run, or all its checkpoints are damaged.
        ConfigError: The run is finished, its data has changed, another process trains it, or a setting was
            changed that the computation depends on.
    """
    if not (run_dir / CONFIG_NAME).is_file():
        raise CheckpointError(f"{run_dir} is not a run: expected {run_dir / CONFIG_NAME}")
    fabric, config = on_this_machine(load_run_config(run_dir, changes))
    with locked(run_dir, fabric):
        classes = saved_classes(run_dir)
        refuse_other_computation(run_dir, config)
        refuse_missing_data(config.data, run_dir, remedy="give the folder where it is now with --data DIR")
        with fabric.rank_zero_first():
            data = checked_data(config, classes, check=fabric.is_global_zero)
        network = build_network(config.model, classes)
        refuse_too_large_images(data.val.samples, config, fabric.device)
        weights = labeled_class_weights(data.labeled.samples, classes, config)
        read = open_readers(data, classes, config.data)
        return _run(config, run_dir, fabric, network, data, classes, read, weights, resumed=True)


def _run(
    config: TrainConfig,
    run_dir: Path,
    fabric: Fabric,
    network: GuidedMixNet,
    data: TrainingData,
    classes: ClassSet,
    read: Readers,
    weights: Tensor | None,
    *,
    resumed: bool,
) -> RunResult:
    plan = build_plan(config, classes)
    state = build_state(config, fabric, network)
    start = Progress()
    if resumed:
        start = restore(run_dir, state, data)
        if plan.is_over(start):
            raise ConfigError(
                f"{run_dir} is finished: {start.iteration} of {plan.iterations} iterations are done; "
                "--iterations N trains it further, up to N"
            )
        if fabric.is_global_zero:
            save_run_config(run_dir, config)
        remark(f"resuming {run_dir} after {start.iteration} of {plan.iterations} iterations")
    if config.run.activation_checkpointing:
        recompute_activations(network)
    compiled = torch.compile(network) if config.run.compile else network
    wrapped, wrapped_optimizer = fabric.setup(cast(nn.Module, compiled), state.optimizer)

    share = (fabric.global_rank, fabric.world_size)
    pin_memory, seed = fabric.device.type == "cuda", config.run.seed
    unreadable = UnreadableImages(data.unlabeled)
    load_labeled = partial(
        labeled_batches,
        data.labeled.samples,
        classes,
        config.data,
        seed=seed,
        pin_memory=pin_memory,
        share=share,
        read=read.labeled,
    )
    load_unlabeled = partial(
        unlabeled_batches,
        data.unlabeled.samples,
        config.data,
        seed=seed,
        pin_memory=pin_memory,
        share=share,
        read=read.unlabeled,
        unreadable=unreadable,
    )
    supervised = config.method.name == "supervised"
    weights = None if weights is None else fabric.to_device(weights)
    started = time.monotonic()
    with (
        _open_log(fabric, run_dir, plan, start) as log,
        stop_on_sigterm(fabric) as stop,
        explained_worker_failures(run_dir),
    ):
        result = fit(
            fabric,
            cast(nn.Module, wrapped),
            wrapped_optimizer,
            partial(set_learning_rates, state.optimizer, config.optim),
            _build_step(config.method, classes, state.average, weights),
            plan=plan,
            start=start,
            tally=state.tally,
            labeled=load_labeled(start=start.iteration),
            unlabeled=None if supervised else load_unlabeled(start=max(0, start.iteration - plan.unlabeled_from)),
            hooks=build_hooks(config, run_dir, fabric, state, plan, data, classes, read, stop, weights),
            stop=stop,
            log=log,
        )
    seconds = time.monotonic() - started
    fabric.barrier()  # the first process has saved
    unreadable.remark_count()
    report = _report(run_dir, result, data, classes, config)
    if fabric.is_global_zero:
        save_report(report, run_dir)
    return RunResult(run_dir, report, seconds)


def _build_step(
    method: MethodConfig, classes: ClassSet, average: nn.Module | None, weights: Tensor | None
) -> Step:
    if method.name == "supervised":
        return partial(supervised_step, method=method, classes=classes, class_weights=weights)
    return partial(guidedmix_step, method=method, classes=classes, average=average, class_weights=weights)


def _open_log(fabric: Fabric, run_dir: Path, plan: FitPlan, start: Progress) -> RunLog | SilentLog:
    if not fabric.is_global_zero:
        return SilentLog()
    return RunLog(run_dir, iterations=plan.iterations, start=start.iteration)


def _report(
    run_dir: Path, result: FitResult, data: TrainingData, classes: ClassSet, config: TrainConfig
) -> IoUReport:
    checkpoint, progress = read_checkpoint(run_dir, "last"), result.progress
    remark(
        f"last mIoU {percent(checkpoint.miou)} %, best {percent(progress.best_miou)} % at iteration "
        f"{progress.best_iteration} (chosen on the validation set, so it flatters)"
    )
    return IoUReport(
        confusion=result.last,
        classes=classes,
        num_images=len(data.val.samples),
        failed=(),
        provenance=Provenance(
            split=data.val.name,
            split_sha256=data.val.sha256,
            model=str(run_dir),
            model_sha256=checkpoint.sha256,
            backend=f"torch {torch.__version__} {config.run.device}",
            precision=config.run.precision,
            labeled_sha256=data.labeled.sha256,
        ),
        best=BestScore(progress.best_miou, progress.best_iteration),
    )
