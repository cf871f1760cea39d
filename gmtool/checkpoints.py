"""What a checkpoint says about itself: the small JSON that names its weights, by hash. No torch needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from gmtool.classes import ClassSet
from gmtool.config import ModelConfig
from gmtool.errors import CheckpointError, ConfigError, DataError
from gmtool.files import sha256_of_file
from gmtool.json_toml import read_json
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


def read_checkpoint(run_dir: Path, name: str) -> Checkpoint:
    """Return what a run's checkpoint says about itself.

    Raises:
        CheckpointError: There is no such checkpoint, its JSON is damaged, or a newer gmtool wrote it.
    """
    path = run_dir / CHECKPOINT_DIR / f"{name}.json"
    if not path.is_file():
        raise CheckpointError(f"{run_dir} is not a trained run: expected {path}")
    return read_checkpoint_file(path)


def read_checkpoint_file(path: Path) -> Checkpoint:
    """Return what the JSON of a checkpoint says.

    Raises:
        CheckpointError: It is damaged, or a newer gmtool wrote it.
    """
    try:
        value: dict[str, Any] = read_json(path)
        if value.pop("format_version") != FORMAT_VERSION:
            raise CheckpointError(f"{path}: written by another version of gmtool; expected {FORMAT_VERSION}")
        return Checkpoint(
            model=TypeAdapter(ModelConfig).validate_python(value.pop("model")),
            classes=ClassSet.from_dict(value.pop("classes"), where=str(path)),
            **value,
        )
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError, DataError, ConfigError) as error:
        raise CheckpointError(f"{path}: damaged: {str(error).splitlines()[0]}") from error


def checked_file(description: Path, file: str, sha256: str) -> Path:
    """Return the path of a file that a checkpoint's JSON names.

    Args:
        description: The JSON.
        file: Name of the file beside it.
        sha256: What the JSON says its hash is.

    Raises:
        CheckpointError: It is missing, or another file.
    """
    path = description.with_name(file)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, but {description.name} names it")
    if sha256_of_file(path) != sha256:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {description.name}")
    return path
