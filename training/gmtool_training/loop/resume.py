"""Save and restore training state, so that a resumed run ends like an uninterrupted one.

Random numbers for data depend only on (seed, epoch, sample) or (seed, step), and the learning rate on the step, so
the number of steps restores them. Saved: weights, their average, momentum, loss scale, best score, sums since the
last log event, torch's random state, and the settings of the computation, since `config.toml` may be edited.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gmtool.artifact.runs import CONFIG_NAME
from gmtool.classes import ClassSet
from gmtool.config import TrainConfig
from gmtool.console import remark
from gmtool.data.datasets import TrainingData
from gmtool.errors import CheckpointError, ConfigError
from gmtool.nn.checkpoint import (
    Checkpoint,
    TrainingState,
    load_network,
    load_training_state,
    read_checkpoint,
    resumable_names,
)
from gmtool.nn.model import GuidedMixNet
from gmtool_training.loop.figures import StepSums
from gmtool_training.loop.progress import TrainingProgress

FREE_SETTINGS = frozenset(
    (
        # Images are compared by the hash of their ids; classes come from the checkpoint
        *(f"data.{name}" for name in ("root", "labeled", "unlabeled", "val", "classes")),
        *(f"data.{name}" for name in ("workers", "cache")),
        "optim.iterations",
        *(f"run.{name}" for name in ("device", "compile", "channels_last", "activation_checkpointing")),
        *(f"run.{name}" for name in ("log_every", "validations", "save_every", "save_state", "keep_last")),
        *(f"run.{name}" for name in ("patience", "max_skipped")),
    )
)
"""Settings that may change when a run is resumed: the computation of a step does not depend on them."""


@dataclass(frozen=True)
class RunState:
    """State that changes during a run."""

    network: GuidedMixNet
    average: GuidedMixNet | None
    """Moving average of the weights; None without `optim.ema_decay`."""
    optimizer: Optimizer
    scaler: torch.amp.GradScaler | None
    """Loss scaler of 16-mixed; else None."""
    sums: StepSums

    @property
    def saved_network(self) -> GuidedMixNet:
        """Network whose weights are validated, saved and exported."""
        return self.average or self.network


def pack_state(
    state: RunState, progress: TrainingProgress, data: TrainingData, config: TrainConfig
) -> TrainingState:
    """Return the state that `restore` reads, besides the weights of `saved_network`."""
    tensors = {
        f"momentum.{index}": value["momentum_buffer"]
        for index, value in state.optimizer.state_dict()["state"].items()
        if value.get("momentum_buffer") is not None
    }
    if state.average is not None:
        tensors |= {f"network.{name}": value for name, value in state.network.state_dict().items()}
    return TrainingState(
        tensors=tensors | {"sums": state.sums.state(), "random.torch": torch.get_rng_state()},
        values={
            "progress": asdict(progress),
            "scaler": None if state.scaler is None else state.scaler.state_dict(),
            "labeled_sha256": data.labeled.sha256,
            "unlabeled_sha256": data.unlabeled.sha256,
            "val_sha256": data.val.sha256,
            "settings": _computation(config),
        },
    )


def restore(run_dir: Path, state: RunState, data: TrainingData) -> TrainingProgress:
    """Load the newest undamaged checkpoint into `state` and return the progress of the run.

    Raises:
        CheckpointError: No checkpoint can be resumed, or all are damaged.
        ConfigError: The images of the run have changed.
    """
    saved, weights = _newest_whole(run_dir)
    for name, split in (("labeled", data.labeled), ("unlabeled", data.unlabeled), ("val", data.val)):
        if saved.values[f"{name}_sha256"] != split.sha256:
            raise ConfigError(
                f"the {name} images of {run_dir} have changed since it began: put them back, or start a new run"
            )
    state.saved_network.load_state_dict(weights)
    if state.average is not None:
        state.network.load_state_dict(_below("network.", saved.tensors))
    _restore_momentum(state.optimizer, _below("momentum.", saved.tensors))
    if state.scaler is not None:
        state.scaler.load_state_dict(saved.values["scaler"])
    state.sums.restore(saved.tensors["sums"])
    torch.set_rng_state(saved.tensors["random.torch"])
    return TrainingProgress(**saved.values["progress"])


def saved_classes(run_dir: Path) -> ClassSet:
    """Return the classes of a run, from its newest checkpoint.

    Raises:
        CheckpointError: The run has no checkpoint, or all are damaged.
    """
    return _newest_description(run_dir).classes


def refuse_other_computation(run_dir: Path, config: TrainConfig) -> None:
    """Raise `ConfigError` if a setting that the computation depends on differs from the run's checkpoints.

    Raises:
        CheckpointError: The run has no checkpoint, or all are damaged.
    """
    training = _newest_description(run_dir).training
    if training is None:  # `restore` says that there is no state to go on from
        return
    saved = training["settings"]
    changed = [
        f"{name} was {saved[name]}, is {value}"
        for name, value in _computation(config).items()
        if name in saved and saved[name] != value
    ]
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise ConfigError(
            f"{run_dir} began with other settings: {'; '.join(changed[:3])}{more}: the computation depends on "
            f"that: leave the option out or restore {CONFIG_NAME}, or start a new run"
        )


def _computation(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that the computation depends on by dotted name, as JSON values."""
    tree: dict[str, dict[str, Any]] = json.loads(json.dumps(asdict(config), default=str))
    names = {f"{section}.{name}": value for section, table in tree.items() for name, value in table.items()}
    return {name: value for name, value in names.items() if name not in FREE_SETTINGS}


def _newest_description(run_dir: Path) -> Checkpoint:
    """Return the newest undamaged description of a checkpoint."""
    problems = []
    for name in resumable_names(run_dir):
        try:
            return read_checkpoint(run_dir, name)
        except CheckpointError as error:
            problems.append(error)
    raise problems[0]


def _newest_whole(run_dir: Path) -> tuple[TrainingState, dict[str, Any]]:
    """Return state and weights of the newest undamaged checkpoint; remark damaged ones."""
    problems = []
    for name in resumable_names(run_dir):
        try:
            state = load_training_state(run_dir, name)
            network, checkpoint = load_network(run_dir, name)
        except CheckpointError as error:
            problems.append(error)
            continue
        if checkpoint.iteration != state.values["progress"]["iteration"]:
            problems.append(CheckpointError(f"{run_dir}: weights and state of {name} belong to different steps"))
            continue
        for problem in problems:
            remark(f"warning: {problem}: resuming from the previous checkpoint, of step {checkpoint.iteration}")
        return state, network.state_dict()
    raise problems[0]


def _restore_momentum(optimizer: Optimizer, momentum: dict[str, Tensor]) -> None:
    for index, parameter in enumerate(_parameters(optimizer)):
        if str(index) in momentum:
            # In the memory format of the parameter, which a fused optimiser needs
            buffer = torch.empty_like(parameter).copy_(momentum[str(index)])
            optimizer.state[parameter]["momentum_buffer"] = buffer


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
