"""Checkpoints: weights as safetensors, and a small JSON that names them, by hash, and says what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from gmtool.classes import ClassSet
from gmtool.config import ModelConfig
from gmtool.errors import CheckpointError, ConfigError, DataError
from gmtool.files import sha256_of_file
from gmtool.nn.model import GuidedMixNet
from gmtool.runs import CHECKPOINT_DIR

FORMAT_VERSION = 1

CheckpointName = Literal["best", "last"]


@dataclass(frozen=True)
class Checkpoint:
    """What is known about saved weights."""

    weights: str
    """File name beside the JSON."""
    sha256: str
    """Hash of that file."""
    iteration: int
    """Optimiser steps behind the weights."""
    miou: float | None
    """Validation mIoU in [0, 1]; None when no pixel was scored."""
    model: ModelConfig
    classes: ClassSet
    labeled_sha256: str | None = None
    """Hash of the ids of the labeled images, in order."""
    state: str | None = None
    """File name of what training needs to go on, beside the JSON; None where nothing can go on from it."""
    state_sha256: str | None = None
    """Hash of that file."""
    training: dict[str, Any] | None = None
    """What training needs to go on and is not a tensor."""


@dataclass(frozen=True)
class TrainingState:
    """What training needs beside the weights, to go on as if it had never stopped."""

    tensors: dict[str, Tensor]
    """Optimiser and random state by name."""
    values: dict[str, Any]
    """The rest, as JSON has it."""


def build_network(model: ModelConfig, classes: ClassSet) -> GuidedMixNet:
    """Return the network for a class set, with random weights."""
    return GuidedMixNet(model, num_classes=len(classes), num_foreground=len(classes.foreground))


def resumable_names(run_dir: Path) -> list[str]:
    """Return the names of the checkpoints that training can go on from, the newest first."""
    return ["last", *(path.stem for path in reversed(older_checkpoints(run_dir / CHECKPOINT_DIR)))]


def read_checkpoint(run_dir: Path, name: str) -> Checkpoint:
    """Return what a run's checkpoint says about itself.

    Raises:
        CheckpointError: There is no such checkpoint, its JSON is damaged, or a newer gmtool wrote it.
    """
    path = run_dir / CHECKPOINT_DIR / f"{name}.json"
    if not path.is_file():
        raise CheckpointError(f"{run_dir} is not a trained run: expected {path}")
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if value.pop("format_version") != FORMAT_VERSION:
            raise CheckpointError(f"{path}: written by another version of gmtool; expected {FORMAT_VERSION}")
        return Checkpoint(
            model=TypeAdapter(ModelConfig).validate_python(value.pop("model")),
            classes=ClassSet.from_dict(value.pop("classes"), where=str(path)),
            **value,
        )
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError, DataError, ConfigError) as error:
        raise CheckpointError(f"{path}: damaged: {str(error).splitlines()[0]}") from error


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
    path = run_dir / CHECKPOINT_DIR / file
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, but {name}.json names it")
    if sha256_of_file(path) != sha256:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {name}.json")
    return path


def refuse_not_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise `CheckpointError` if a value is infinite or not a number; `where` ends the message."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} has values that are not finite {where}")


def older_checkpoints(folder: Path) -> list[Path]:
    """Return the JSON files of the checkpoints before the last one, the oldest first."""
    return sorted(folder.glob("iteration-*.json"))
