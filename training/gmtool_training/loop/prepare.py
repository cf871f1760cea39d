"""Preparation of a run: device, data, network and optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from gmtool.classes import ClassSet
from gmtool.config import TrainConfig
from gmtool.console import announcing, remark
from gmtool.data.check import check_masks
from gmtool.data.datasets import TrainingData
from gmtool.nn.model import GuidedMixNet
from gmtool.resources import decoding_processes, processors
from gmtool_training.data.cache import Readers, open_readers
from gmtool_training.engine.average import averaged_copy
from gmtool_training.engine.kept_features import require_room
from gmtool_training.engine.machine import HALF, Machine, open_machine, share_batch_statistics, share_weights
from gmtool_training.engine.optim import build_optimizer
from gmtool_training.engine.validation_memory import refuse_too_large_images
from gmtool_training.loop.checks import find_data, refuse_undividable_batches
from gmtool_training.loop.figures import StepSums
from gmtool_training.loop.resume import RunState
from gmtool_training.method.batchnorm import freeze
from gmtool_training.method.class_weights import labeled_class_weights
from gmtool_training.watch.tracker import NoTracker, Tracker

HEAVY_OMEGA, FEWEST_LABELS = 10.0, 500
"""The paper has its weight of 30 with 500 labels and more; with 24 and 44 it lost what labels had given."""


@dataclass(frozen=True)
class RunContext:
    """Constant parts of a run: settings, folder, device, data."""

    config: TrainConfig
    run_dir: Path
    machine: Machine
    data: TrainingData
    classes: ClassSet
    readers: Readers
    """Readers of images and masks: from files, or from a cache."""
    class_weights: Tensor | None
    """(C,) float32 on the device, those of `method.balance`; None: all classes alike."""
    tracker: Tracker = field(default_factory=NoTracker)
    """Experiment tracker of `run.tracker`."""


def on_this_machine(config: TrainConfig) -> tuple[Machine, TrainConfig]:
    """Return the machine, and the configuration with `auto` and None replaced by values for this machine."""
    machine, device, precision = open_machine(config.run.device, config.run.precision)
    refuse_undividable_batches(config, processes=machine.processes)
    workers = decoding_processes() if config.data.workers is None else config.data.workers
    torch.set_num_threads(
        min(torch.get_num_threads(), processors())
    )  # torch does not know the quota of a container
    channels_last = config.run.channels_last
    if channels_last is None:
        channels_last = device == "cuda" and precision in HALF
    return machine, replace(
        config,
        data=replace(config.data, workers=workers),
        run=replace(config.run, device=device, precision=precision, channels_last=channels_last),
    )


def checked_data(config: TrainConfig, classes: ClassSet, *, check: bool) -> TrainingData:
    """Find the images of a run and print their numbers; with `check`, read every mask first."""
    data = find_data(config)
    if check:
        with announcing(f"reading {len(data.labeled.samples) + len(data.val.samples)} masks"):
            warnings = check_masks(data, classes, config.data)
        for warning in warnings:
            remark(f"warning: {warning.message}")
    remark(
        f"data: {len(data.labeled.samples)} labeled ({data.labeled.name}), {len(data.unlabeled.samples)} "
        f"unlabeled ({data.unlabeled.name}), {len(data.val.samples)} validation ({data.val.name}), "
        f"{len(classes)} classes, seed {config.run.seed}"
    )
    method, labels = config.method, len(data.labeled.samples)
    uses_unlabeled = method.name not in ("supervised", "probe")
    if uses_unlabeled and method.omega_max >= HEAVY_OMEGA and labels < FEWEST_LABELS:
        remark(
            f"warning: an unlabeled weight of {method.omega_max:g} with {labels} labeled images: such runs fell "
            "apart (docs/RESULTS.md): leave --recipe out, gmtool then chooses, or try --set method.omega_max=3"
        )
    return data


def build_context(
    config: TrainConfig,
    run_dir: Path,
    machine: Machine,
    data: TrainingData,
    classes: ClassSet,
    network: GuidedMixNet,
) -> RunContext:
    """Check the memory for validation, compute the class weights, and fill the cache if the settings ask for one.

    Raises:
        DataError: A validation image or the cache does not fit into memory, or a mask cannot be used.
        ConfigError: Features that are to be kept do not fit into memory.
    """
    half = config.run.precision != "32-true"
    refuse_too_large_images(data.val.samples, network.attention, machine.device, half=half)
    weights = labeled_class_weights(data.labeled.samples, classes, config)
    readers = open_readers(data, classes, config.data)
    require_room(network, config, len(data.labeled.samples), machine)  # of what the cache has left
    return RunContext(
        config=config,
        run_dir=run_dir,
        machine=machine,
        data=data,
        classes=classes,
        readers=readers,
        class_weights=None if weights is None else machine.to_device(weights),
    )


def build_state(config: TrainConfig, machine: Machine, network: GuidedMixNet) -> RunState:
    """Move the network to its device; return it with optimiser, average, loss scaler and sums."""
    share_batch_statistics(machine, network)
    network.to(machine.device)
    if config.run.channels_last:
        network.to(memory_format=torch.channels_last)
    if config.optim.freeze_encoder:
        freeze(network.encoder)
    share_weights(machine, network)
    return RunState(
        network=network,
        average=averaged_copy(network) if config.optim.ema_decay else None,
        optimizer=build_optimizer(network, config.optim),
        scaler=machine.scaler,
        sums=StepSums(machine.device),
    )
