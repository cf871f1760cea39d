"""Description of a checkpoint: JSON with the hash of its weights, and its own hash. Needs no torch."""

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
from gmtool.errors import CheckpointError, ConfigError, DataError, some_names
from gmtool.files import sha256_of_file
from gmtool.json_toml import read_json

FORMAT_VERSION = 1
SEAL = "description_sha256"
"""Key of the hash of the rest of the JSON."""

CheckpointName = Literal["best", "last"]


@dataclass(frozen=True)
class Checkpoint:
    """Description of saved weights."""

    weights: str
    """File name of the weights, in the folder of the JSON."""
    sha256: str
    """SHA-256 of the weights file."""
    iteration: Annotated[int, Ge(0)]
    """Optimiser steps done."""
    miou: float | None
    """Validation mIoU in [0, 1]; None if no pixel was scored."""
    model: ModelConfig
    classes: ClassSet
    labeled_sha256: str | None = None
    """SHA-256 of the ids of the labeled images, in order."""
    state: str | None = None
    """File name of the training state, in the folder of the JSON; None: training cannot be resumed from it."""
    state_sha256: str | None = None
    """SHA-256 of the state file."""
    training: dict[str, Any] | None = None
    """Training state that is not a tensor."""


def read_checkpoint(run_dir: Path, name: str) -> Checkpoint:
    """Return the description of a run's checkpoint.

    Raises:
        CheckpointError: Checkpoint missing, JSON damaged, or written by another version of gmtool.
    """
    path = run_dir / CHECKPOINT_DIR / f"{name}.json"
    if not path.is_file():
        raise CheckpointError(f"{run_dir} is not a trained run: expected {path}")
    return read_checkpoint_file(path)


def read_checkpoint_file(path: Path) -> Checkpoint:
    """Return the description in the JSON of a checkpoint.

    Raises:
        CheckpointError: JSON damaged, changed, or written by another version of gmtool.
    """
    try:
        value = read_sealed(path)
        del value["format_version"]
        classes = ClassSet.from_dict(value.pop("classes"), where=str(path))
        return TypeAdapter(Checkpoint).validate_python({**value, "classes": classes})
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError, DataError, ConfigError) as error:
        raise CheckpointError(f"{path}: damaged: {str(error).splitlines()[0]}") from error


def refuse_foreign_classes(source: str, teacher: ClassSet, classes: ClassSet) -> list[str]:
    """Return the classes that a teacher does not know.

    Raises:
        CheckpointError: It knows none of them.
    """
    unknown = [name for name in classes.names if name not in teacher.names]
    if len(unknown) == len(classes):
        raise CheckpointError(
            f"--teacher {source}: none of the classes {some_names(list(classes.names))} is among its own, "
            f"{some_names(list(teacher.names))}"
        )
    return unknown


def resumable_names(run_dir: Path) -> list[str]:
    """Return the names of the checkpoints that training can go on from, the newest first."""
    return ["last", *(path.stem for path in reversed(older_checkpoints(run_dir / CHECKPOINT_DIR)))]


def older_checkpoints(folder: Path) -> list[Path]:
    """Return the JSON files of the checkpoints before the last one, the oldest first."""
    return sorted(folder.glob("iteration-*.json"))


def sealed(value: dict[str, Any]) -> str:
    """Return the JSON text of a description, with the hash of its content."""
    return json.dumps(value | {SEAL: _seal_of(value)}, indent=1) + "\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the values of a description, without their hash.

    Raises:
        CheckpointError: Not a description, changed since it was written, or by another version of gmtool.
        DataError: The file cannot be read.
    """
    value: Any = read_json(path)
    if not isinstance(value, dict) or "format_version" not in value:
        raise CheckpointError(f"{path}: damaged: not the description of a checkpoint")
    if value["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path}: written by another version of gmtool; expected {FORMAT_VERSION}")
    if value.pop(SEAL, None) != _seal_of(value):
        raise CheckpointError(f"{path}: damaged: its content does not match its {SEAL}")
    return value


def _seal_of(value: dict[str, Any]) -> str:
    # Through JSON, which converts keys to text
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def checked_file(description: Path, file: str, sha256: str) -> Path:
    """Return the checked path of a file that a checkpoint's JSON names.

    Args:
        description: Path of the JSON.
        file: Name of the file, in the same folder.
        sha256: Hash of the file according to the JSON.

    Raises:
        CheckpointError: The file is missing, has another hash, or is not in the folder of the JSON.
    """
    path = description.parent / file
    if path.parent != description.parent or not path.name:
        raise CheckpointError(f"{description}: names {file}, which is not in the same folder")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, but {description.name} names it")
    if sha256_of_file(path) != sha256:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {description.name}")
    return path
