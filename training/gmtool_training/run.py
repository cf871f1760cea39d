"""A training run from its configuration to its report: everything is checked before anything is written."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from lightning_fabric import Fabric
from torch import nn

from gmtool.classes import ClassSet, load_classes
from gmtool.config import DeviceName, MethodConfig, TrainConfig
from gmtool.console import remark
from gmtool.datacheck import check_masks
from gmtool.datasets import TrainingData, load_training_data
from gmtool.errors import BackendError, CheckpointError, ConfigError
from gmtool.files import write_atomically
from gmtool.nn.checkpoint import CheckpointName, build_network, read_checkpoint, save_checkpoint
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.weights import load_encoder_weights
from gmtool.report import IoUReport, Provenance, percent
from gmtool.runs import CONFIG_NAME, require_empty
from gmtool.settings import dump_config, load_config
from gmtool_training.cache import open_readers
from gmtool_training.data import labeled_batches, unlabeled_batches
from gmtool_training.fit import FitPlan, FitResult, fit
from gmtool_training.log import RunLog
from gmtool_training.losses import omega_at
from gmtool_training.optim import build_optimizer, build_schedule
from gmtool_training.resume import Progress, pack_state, restore
from gmtool_training.step import Step, guidedmix_step, supervised_step
from gmtool_training.stop import asked_to_stop
from gmtool_training.validate import validate


@dataclass(frozen=True)
class RunResult:
    """What a finished run can say."""

    run_dir: Path
    report: IoUReport
    """Scores of the last weights."""
    best_miou: float | None
    """Best validation mIoU in [0, 1]; None while no pixel was scored."""
    seconds: float
    """Wall-clock time of the training loop, validations included."""


def train(config: TrainConfig, run_dir: Path) -> RunResult:
    """Train, and leave in `run_dir` settings, checkpoints, metrics and a report.

    Raises:
        TerminatedError: SIGTERM; the run can be resumed.
        GmtoolError: Something is wrong with settings, data or weights. If it was found before the first
            step, `run_dir` was not created.
    """
    require_empty(run_dir)
    classes = load_classes(config.data.classes)
    data = _checked_data(config, classes)
    fabric, config = _build_fabric(config)
    torch.manual_seed(config.run.seed)
    network = build_network(config.model, classes)
    remark(load_encoder_weights(network.encoder, config.model.encoder, config.model.encoder_weights))
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / CONFIG_NAME, dump_config(config))
    return _run(config, run_dir, fabric, network, data, classes, resumed=False)


def resume(run_dir: Path) -> RunResult:
    """Go on with a run from its last checkpoint, with the settings it was started with.

    The result is that of a run that was never stopped, bit for bit on the same processor.

    Raises:
        CheckpointError: `run_dir` is no run, or its last checkpoint is damaged.
        ConfigError: The run is finished, or its data has changed.
    """
    if not (run_dir / CONFIG_NAME).is_file():
        raise CheckpointError(f"{run_dir} is not a run: expected {run_dir / CONFIG_NAME}")
    config = load_config(run_dir / CONFIG_NAME)
    classes = read_checkpoint(run_dir, "last").classes
    data = _checked_data(config, classes)
    fabric, config = _build_fabric(config)
    network = build_network(config.model, classes)
    return _run(config, run_dir, fabric, network, data, classes, resumed=True)


def _run(
    config: TrainConfig,
    run_dir: Path,
    fabric: Fabric,
    network: GuidedMixNet,
    data: TrainingData,
    classes: ClassSet,
    *,
    resumed: bool,
) -> RunResult:
    iterations, seed = config.optim.iterations, config.run.seed
    optimizer = build_optimizer(network, config.optim)
    schedule = build_schedule(optimizer, config.optim)
    start = Progress()
    if resumed:
        start = restore(run_dir, network, optimizer, schedule, data, iterations=iterations)
        remark(f"resuming {run_dir} after {start.iteration} of {iterations} iterations")
    wrapped, wrapped_optimizer = fabric.setup(network, optimizer)
    plan = _plan(config)

    def save(progress: Progress, miou: float | None, is_best: bool) -> None:
        names: list[CheckpointName] = ["last", "best"] if is_best else ["last"]
        save_checkpoint(
            run_dir,
            names,
            network,
            iteration=progress.iteration,
            miou=miou,
            model=config.model,
            classes=classes,
            state=pack_state(progress, optimizer, schedule, data),
        )

    read = open_readers(data, classes, config.data)
    load_labeled = partial(
        labeled_batches, data.labeled.samples, classes, config.data, seed=seed, read=read.labeled
    )
    load_unlabeled = partial(
        unlabeled_batches, data.unlabeled.samples, config.data, seed=seed, read=read.unlabeled
    )
    pin_memory = fabric.device.type == "cuda"
    started = time.monotonic()
    with (
        RunLog(run_dir, iterations=iterations, start=start.iteration) as log,
        asked_to_stop() as raise_if_asked_to_stop,
    ):
        result = fit(
            fabric,
            cast(nn.Module, wrapped),
            wrapped_optimizer,
            schedule,
            _build_step(config.method, classes),
            plan=plan,
            start=start,
            labeled=load_labeled(pin_memory=pin_memory, start=start.iteration),
            unlabeled=None
            if config.method.name == "supervised"
            else load_unlabeled(pin_memory=pin_memory, start=max(0, start.iteration - plan.unlabeled_from)),
            validate=partial(
                validate,
                fabric,
                wrapped,
                data.val,
                classes=classes,
                config=config.data,
                before_image=raise_if_asked_to_stop,
                read=read.val,
            ),
            save=save,
            raise_if_asked_to_stop=raise_if_asked_to_stop,
            log=log,
        )
    seconds = time.monotonic() - started
    report = _report(run_dir, result, data, classes, config)
    report.save(run_dir)
    return RunResult(run_dir, report, result.progress.best_miou, seconds)


def _checked_data(config: TrainConfig, classes: ClassSet) -> TrainingData:
    data = load_training_data(config.data)
    if config.method.name == "guidedmix" and not data.unlabeled.samples:
        raise ConfigError(
            f"no unlabeled images: all {len(data.labeled.samples)} of {data.labeled.name} are labeled; give a "
            "shorter list with --labels, others with --unlabeled, or --set method.name=supervised"
        )
    check_masks([*data.labeled.samples, *data.val.samples], classes, values=config.data.mask_values)
    remark(
        f"data: {len(data.labeled.samples)} labeled ({data.labeled.name}), {len(data.unlabeled.samples)} "
        f"unlabeled, {len(data.val.samples)} validation ({data.val.name}), {len(classes)} classes"
    )
    return data


def _build_fabric(config: TrainConfig) -> tuple[Fabric, TrainConfig]:
    """Return Fabric on the asked device, and the configuration with what `auto` came to."""
    device, precision = config.run.device, config.run.precision
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch sees no CUDA device here: take --device cpu, or auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise BackendError("--device mps: torch sees no Apple GPU here: take --device cpu, or auto")
    precision = _native_precision(device) if precision == "auto" else precision
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # says what the next line says
    fabric = Fabric(accelerator=device, devices=1, precision=precision)
    fabric.launch()
    found = cast(DeviceName, fabric.device.type)
    remark(f"device {found}, precision {precision}, seed {config.run.seed}")
    workers = min(8, os.cpu_count() or 1) if config.data.workers is None else config.data.workers
    return fabric, replace(
        config,
        data=replace(config.data, workers=workers),
        run=replace(config.run, device=found, precision=precision),
    )


def _native_precision(device: DeviceName) -> Literal["32-true", "bf16-mixed"]:
    """Return bf16-mixed where the device multiplies bfloat16 natively, else 32-true."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if device in ("auto", "mps") and torch.backends.mps.is_available():
        return "32-true"
    # Not public, so it may be missing; then 32-bit is the safe answer
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if has_bf16() else "32-true"


def _build_step(method: MethodConfig, classes: ClassSet) -> Step:
    step = guidedmix_step if method.name == "guidedmix" else supervised_step
    return partial(step, method=method, classes=classes)


def _plan(config: TrainConfig) -> FitPlan:
    iterations, method = config.optim.iterations, config.method
    supervised = method.name == "supervised"
    warmup = iterations if supervised else round(method.warmup_fraction * iterations)
    return FitPlan(
        iterations=iterations,
        unlabeled_from=warmup,
        omega_at=partial(
            omega_at,
            iterations=iterations,
            warmup=warmup,
            ramp_fraction=method.ramp_fraction,
            omega_max=method.omega_max,
        ),
        seed=config.run.seed,
        log_every=config.run.log_every,
        validations=min(config.run.validations, iterations),
        save_every=config.run.save_every,
    )


def _report(
    run_dir: Path, result: FitResult, data: TrainingData, classes: ClassSet, config: TrainConfig
) -> IoUReport:
    checkpoint = read_checkpoint(run_dir, "last")
    remark(
        f"last mIoU {percent(checkpoint.miou)} %, best {percent(result.progress.best_miou)} % at iteration "
        f"{result.progress.best_iteration} (chosen on the validation set, so it flatters)"
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
        ),
    )
