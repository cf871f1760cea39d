"""Writing checkpoints so that a process killed at any point leaves old or new ones, whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from gmtool.artifact.checkpoints import read_sealed, sealed
from gmtool.artifact.runs import CHECKPOINT_DIR
from gmtool.classes import ClassSet
from gmtool.config import ModelConfig
from gmtool.errors import DataError, GmtoolError
from gmtool.files import sweep_leftovers, write_atomically
from gmtool.json_toml import read_json
from gmtool.nn.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    CheckpointName,
    TrainingState,
    older_checkpoints,
    refuse_not_finite,
)
from gmtool.nn.model import GuidedMixNet


def save_checkpoint(
    run_dir: Path,
    names: list[CheckpointName],
    network: GuidedMixNet,
    *,
    iteration: int,
    miou: float | None,
    model: ModelConfig,
    classes: ClassSet,
    labeled_sha256: str | None = None,
    state: TrainingState | None = None,
    keep_last: int = 2,
) -> Checkpoint:
    """Save the weights once and let each of `names` mean them; `last` also gets the training state.

    Files are on disk, whole, before a JSON names them; files that no JSON names are deleted last. A process
    killed at any point leaves each name with its old or its new weights. What `last` meant before stays as
    `iteration-N`, so that there are `keep_last` checkpoints to go on from.

    Raises:
        CheckpointError: The weights are not finite; what was saved before stands.
    """
    folder = run_dir / CHECKPOINT_DIR
    folder.mkdir(exist_ok=True)
    sweep_leftovers(folder)
    weights = _on_cpu(network.state_dict())
    refuse_not_finite(weights, f"after {iteration} steps; the checkpoint before stands: lower optim.lr")
    name, sha256 = _write_tensors(folder, f"weights-{iteration:06d}", weights)
    checkpoint = Checkpoint(name, sha256, iteration, miou, model, classes, labeled_sha256)
    resumable = checkpoint
    if state is not None:
        name, sha256 = _write_tensors(folder, f"state-{iteration:06d}", _on_cpu(state.tensors))
        resumable = replace(checkpoint, state=name, state_sha256=sha256, training=state.values)
    if "last" in names:
        _keep_as_older(folder, before=iteration)
    for described in names:
        value = asdict(resumable if described == "last" else checkpoint)
        value |= {"format_version": FORMAT_VERSION, "classes": classes.to_dict()}
        write_atomically(folder / f"{described}.json", sealed(value))
    _delete_old(folder, iteration=iteration, older=keep_last - 1)
    return checkpoint


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous().cpu() for name, value in tensors.items()}


def _write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor]) -> tuple[str, str]:
    """Write a file that is named by its content, so that no other is replaced; return name and hash."""
    content = safetensors.torch.save(tensors)
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"{stem}-{sha256[:8]}.safetensors"
    write_atomically(folder / name, content)
    return name, sha256


def _keep_as_older(folder: Path, *, before: int) -> None:
    """Keep what `last` means under a name of its own, unless it is damaged or the run has gone back behind it."""
    value = _whole_or_empty(folder / "last.json")
    if value.get("iteration", before) < before:
        write_atomically(folder / f"iteration-{value['iteration']:06d}.json", sealed(value))


def _delete_old(folder: Path, *, iteration: int, older: int) -> None:
    """Delete all but the newest older checkpoints, then every tensor file that no JSON names."""
    paths = older_checkpoints(folder)
    steps = [_whole_or_empty(path).get("iteration", iteration) for path in paths]
    kept = [path for path, step in zip(paths, steps, strict=True) if step < iteration][-older:]
    for path in set(paths) - set(kept):
        path.unlink()
    # Those of a damaged description stay: a person may still read it
    values = [_read_or_empty(path) for path in folder.glob("*.json")]
    named = {value.get(key) for value in values for key in ("weights", "state")}
    for path in folder.glob("*.safetensors"):
        if path.name not in named:
            path.unlink()


def _whole_or_empty(path: Path) -> dict[str, Any]:
    """Return a description; an empty one if the file is missing, damaged or was changed."""
    try:
        return read_sealed(path)
    except GmtoolError:
        return {}


def _read_or_empty(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if the file is missing or damaged."""
    try:
        value = read_json(path)
    except DataError:
        return {}
    return value if isinstance(value, dict) else {}
