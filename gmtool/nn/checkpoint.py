"""Checkpoints: weights as safetensors, and a small JSON that names them, by hash, and says what they are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError

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
) -> Checkpoint:
    """Save the weights once and let each of `names` mean them.

    The weights are on disk, whole, before a JSON names them; weights that no JSON names are deleted last.
    A process killed at any point leaves each name with its old or its new weights.
    """
    folder = run_dir / CHECKPOINT_DIR
    folder.mkdir(exist_ok=True)
    sweep_leftovers(folder)
    path = folder / f"weights-{iteration:06d}.safetensors"
    tensors = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    write_atomically(path, safetensors.torch.save(tensors))
    checkpoint = Checkpoint(path.name, sha256_of_file(path), iteration, miou, model, classes)
    value = asdict(checkpoint) | {"format_version": FORMAT_VERSION, "classes": classes.to_dict()}
    for name in names:
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
    path = run_dir / CHECKPOINT_DIR / checkpoint.weights
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, but {name}.json names it")
    if sha256_of_file(path) != checkpoint.sha256:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {name}.json")
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


def _delete_unnamed(folder: Path) -> None:
    named = {
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["weights"]
        for name in get_args(CheckpointName)
        if (folder / f"{name}.json").is_file()
    }
    for path in folder.glob("weights-*.safetensors"):
        if path.name not in named:
            path.unlink()
