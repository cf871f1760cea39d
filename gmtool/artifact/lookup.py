"""Find the run, checkpoint or model that a path, or none, stands for."""

from __future__ import annotations

import os
from pathlib import Path

from gmtool.artifact.runs import CHECKPOINT_DIR, EXPORT_DIR, newest_model, newest_run
from gmtool.errors import ArtifactError, CheckpointError, UsageError


def find_model(path: str | os.PathLike[str] | None) -> Path:
    """Return the file of an exported model.

    Args:
        path: The file; a run folder for the ONNX model that was exported last from it; None for the one that was
            exported last below `runs/`.

    Raises:
        ArtifactError: None was named and there is none, or nothing was exported from the run.
    """
    if path is None:
        return newest_model()
    path = Path(path)
    if not path.is_dir():
        return path
    models = list((path / EXPORT_DIR).glob("*.onnx"))
    if not models:
        raise ArtifactError(f"{path}: no exported model in {path / EXPORT_DIR}: run gmtool export {path}")
    return max(models, key=lambda model: model.stat().st_mtime)


def find_checkpoint(source: str | os.PathLike[str] | None, name: str | None) -> tuple[Path, str]:
    """Return a run folder and the name of one of its checkpoints.

    Args:
        source: Run folder, or a .json in its checkpoints; None for the newest run below `runs/`.
        name: `best` or `last`; None for `best`, or where `source` is a checkpoint.

    Raises:
        CheckpointError: No such run or checkpoint.
        UsageError: `source` is a checkpoint, and `name` is given too.
    """
    if source is None:
        return newest_run(), name or "best"
    source = Path(source)
    if source.suffix != ".json":
        if not source.is_dir():
            raise CheckpointError(f"run folder {source} does not exist")
        return source, name or "best"
    if name is not None:
        raise UsageError(f"{source} is a checkpoint itself: leave --checkpoint out")
    if source.parent.name != CHECKPOINT_DIR or not source.is_file():
        raise CheckpointError(
            f"{source} is no checkpoint: expected a run folder, or RUN/{CHECKPOINT_DIR}/NAME.json"
        )
    return source.parent.parent, source.stem
