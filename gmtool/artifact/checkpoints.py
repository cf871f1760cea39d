"""Description of a checkpoint: the small JSON that names its weights, by hash, and carries its own hash.

No torch needed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import TypeAdapter, ValidationError

from gmtool.artifact.runs import CHECKPOINT_DIR
from gmtool.classes import ClassSet
from gmtool.config import ModelConfig
from gmtool.errors import CheckpointError, ConfigError, DataError
from gmtool.files import sha256_of_file
from gmtool.json_toml import read_json

FORMAT_VERSION = 1
SEAL = "description_sha256"
"""Key of the hash of everything else in the JSON."""

CheckpointName = Literal["best", "last"]


@dataclass(frozen=True)
class Checkpoint:
    """What is known about saved weights."""

    weights: str
    """File name beside the JSON."""
    sha256: str
    """Hash of that file."""
    iteration: Annotated[int, Ge(0)]
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
        CheckpointError: It is damaged or was changed, or a newer gmtool wrote it.
    """
    try:
        value = read_sealed(path)
        del value["format_version"]
        classes = ClassSet.from_dict(value.pop("classes"), where=str(path))
        return TypeAdapter(Checkpoint).validate_python({**value, "classes": classes})
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError, DataError, ConfigError) as error:
        raise CheckpointError(f"{path}: damaged: {str(error).splitlines()[0]}") from error


def sealed(value: dict[str, Any]) -> str:
    """Return the JSON text of a description, with the hash of the rest in it."""
    return json.dumps(value | {SEAL: _seal_of(value)}, indent=1) + "\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the values of a description, without their hash.

    Raises:
        CheckpointError: It is no description, was changed since it was written, or a newer gmtool wrote it.
        DataError: It cannot be read.
    """
    value: Any = read_json(path)
    if not isinstance(value, dict) or "format_version" not in value:
        raise CheckpointError(f"{path}: damaged: not the description of a checkpoint")
    if value["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path}: written by another version of gmtool; expected {FORMAT_VERSION}")
    if value.pop(SEAL, None) != _seal_of(value):
        raise CheckpointError(f"{path}: damaged: its content is not what its {SEAL} says")
    return value


def _seal_of(value: dict[str, Any]) -> str:
    # Through JSON, which turns the keys of a table into text
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def checked_file(description: Path, file: str, sha256: str) -> Path:
    """Return the path of a file that a checkpoint's JSON names.

    Args:
        description: The JSON.
        file: Name of the file beside it.
        sha256: What the JSON says its hash is.

    Raises:
        CheckpointError: It is missing, another file, or does not lie beside the JSON.
    """
    path = description.parent / file
    if path.parent != description.parent or not path.name:
        raise CheckpointError(f"{description}: names {file}, which does not lie beside it")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, but {description.name} names it")
    if sha256_of_file(path) != sha256:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {description.name}")
    return path
