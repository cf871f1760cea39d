"""Checkpoints: weights as safetensors, and a small JSON that names them, by hash, and says what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from gmtool.classes import ClassSet
from gmtool.config import ModelConfig
from gmtool.errors import CheckpointError, DataError
from gmtool.files import sha256_of_file, sweep_leftovers, write_atomically
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


def save_checkpoint(
    run_dir: Path,
    names: list[CheckpointName],
    network: GuidedMixNet,
    *,
    iteration: int,
    miou: float | None,
    model: ModelConfig,
    classes: ClassSet,
    state: TrainingState | None = None,
) -> Checkpoint:
    """Save the weights once and let each of `names` mean them; `last` also gets the training state.

    Files are on disk, whole, before a JSON names them; files that no JSON names are deleted last. A process
    killed at any point leaves each name with its old or its new weights.
    """
    folder = run_dir / CHECKPOINT_DIR
    folder.mkdir(exist_ok=True)
    sweep_leftovers(folder)
    path = folder / f"weights-{iteration:06d}.safetensors"
    _write_tensors(path, network.state_dict())
    checkpoint = Checkpoint(path.name, sha256_of_file(path), iteration, miou, model, classes)
    resumable = checkpoint
    if state is not None:
        state_path = folder / f"state-{iteration:06d}.safetensors"
        _write_tensors(state_path, state.tensors)
        resumable = replace(
            checkpoint, state=state_path.name, state_sha256=sha256_of_file(state_path), training=state.values
        )
    for name in names:
        described = resumable if name == "last" else checkpoint
        value = asdict(described) | {"format_version": FORMAT_VERSION, "classes": classes.to_dict()}
        write_atomically(folder / f"{name}.json", json.dumps(value, indent=1) + "\n")
    _delete_unnamed(folder)
    return checkpoint


def read_checkpoint(run_dir: Path, name: CheckpointName) -> Checkpoint:
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
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError, DataError) as error:
        raise CheckpointError(f"{path}: damaged: {str(error).splitlines()[0]}") from error


def load_network(run_dir: Path, name: CheckpointName) -> tuple[GuidedMixNet, Checkpoint]:
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
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {key} has values that are not finite: take another checkpoint")
    return network.eval(), checkpoint


def load_training_state(run_dir: Path) -> TrainingState:
    """Return what a run's last checkpoint keeps for going on.

    Raises:
        CheckpointError: It keeps nothing, or the file is missing or damaged.
    """
    checkpoint = read_checkpoint(run_dir, "last")
    if checkpoint.state is None or checkpoint.state_sha256 is None or checkpoint.training is None:
        raise CheckpointError(f"{run_dir}: its last checkpoint keeps no training state: train anew")
    path = _checked_file(run_dir, "last", checkpoint.state, checkpoint.state_sha256)
    return TrainingState(safetensors.torch.load_file(path), checkpoint.training)


def _checked_file(run_dir: Path, name: CheckpointName, file: str, sha256: str) -> Path:
    path = run_dir / CHECKPOINT_DIR / file
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, but {name}.json names it")
    if sha256_of_file(path) != sha256:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {name}.json")
    return path


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    on_cpu = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    write_atomically(path, safetensors.torch.save(on_cpu))


def _delete_unnamed(folder: Path) -> None:
    described = [folder / f"{name}.json" for name in get_args(CheckpointName)]
    values = [json.loads(path.read_text(encoding="utf-8")) for path in described if path.is_file()]
    named = {value.get(key) for value in values for key in ("weights", "state")}
    for path in folder.glob("*.safetensors"):
        if path.name not in named:
            path.unlink()
