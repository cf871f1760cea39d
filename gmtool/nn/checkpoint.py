"""Loading the weights and the training state of a checkpoint: safetensors that its JSON names, by hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gmtool.artifact.checkpoints import (
    FORMAT_VERSION,
    Checkpoint,
    CheckpointName,
    checked_file,
    older_checkpoints,
    read_checkpoint,
    resumable_names,
)
from gmtool.artifact.runs import CHECKPOINT_DIR
from gmtool.classes import ClassSet
from gmtool.config import ModelConfig
from gmtool.errors import CheckpointError
from gmtool.nn.model import GuidedMixNet

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointName",
    "TrainingState",
    "build_network",
    "load_network",
    "load_training_state",
    "older_checkpoints",
    "read_checkpoint",
    "refuse_not_finite",
    "resumable_names",
]


@dataclass(frozen=True)
class TrainingState:
    """Training state beside the weights, for exact resume."""

    tensors: dict[str, Tensor]
    """Optimiser and random state by name."""
    values: dict[str, Any]
    """The rest, as JSON has it."""


def build_network(model: ModelConfig, classes: ClassSet) -> GuidedMixNet:
    """Return the network for a class set, with random weights."""
    return GuidedMixNet(model, num_classes=len(classes), num_foreground=len(classes.foreground))


def load_network(run_dir: Path, name: str) -> tuple[GuidedMixNet, Checkpoint]:
    """Return a run's network with its saved weights, in evaluation mode on the CPU.

    Raises:
        CheckpointError: Missing or damaged, of another architecture, or with weights that are not finite.
    """
    checkpoint = read_checkpoint(run_dir, name)
    path = _checked_file(run_dir, name, checkpoint.weights, checkpoint.sha256)
    network = build_network(checkpoint.model, checkpoint.classes)
    try:
        state = safetensors.torch.load_file(path)
        network.load_state_dict(state)
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not fit the network of {name}.json: {reason}") from error
    refuse_not_finite(state, f"in {path}: take another checkpoint")
    return network.eval(), checkpoint


def load_training_state(run_dir: Path, name: str) -> TrainingState:
    """Return what a checkpoint keeps for going on.

    Raises:
        CheckpointError: It keeps nothing, or the file is missing or damaged.
    """
    checkpoint = read_checkpoint(run_dir, name)
    if checkpoint.state is None or checkpoint.state_sha256 is None or checkpoint.training is None:
        raise CheckpointError(f"{run_dir}: its checkpoint {name} keeps no training state: train anew")
    path = _checked_file(run_dir, name, checkpoint.state, checkpoint.state_sha256)
    return TrainingState(safetensors.torch.load_file(path), checkpoint.training)


def _checked_file(run_dir: Path, name: str, file: str, sha256: str) -> Path:
    return checked_file(run_dir / CHECKPOINT_DIR / f"{name}.json", file, sha256)


def refuse_not_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise `CheckpointError` if a value is infinite or not a number; `where` ends the message."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} has values that are not finite {where}")
