"""Find the run, checkpoint or model that a path, or none, stands for."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from gmtool.artifact.checkpoints import read_checkpoint_file
from gmtool.artifact.openvino_ir import IR_SUFFIX
from gmtool.artifact.runs import CHECKPOINT_DIR, EXPORT_DIR, RUNS_DIR, newest_model, newest_run
from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.errors import ArtifactError, CheckpointError, UsageError, some_names
from gmtool.files import sha256_of_file


def find_model(path: str | os.PathLike[str] | None) -> Path:
    """Return the file of an exported model.

    Args:
        path: The file; a run folder for the ONNX model that was exported last from it, or if it has none for the
            OpenVINO model; a checkpoint for the one that was exported last from its weights; None for the one that
            was exported last below `runs/`.

    Raises:
        ArtifactError: None was named and there is none, no such file or folder, or nothing was exported from the
            run.
    """
    if path is None:
        return newest_model()
    path = Path(path)
    if path.parent.name == CHECKPOINT_DIR and path.suffix in (".json", ".safetensors") and path.is_file():
        return _model_of_checkpoint(path)
    if not path.exists() and path.suffix in ("", ".onnx"):  # those that open others say more
        raise _missing_model(path)
    if not path.is_dir():
        return path
    folder = path / EXPORT_DIR
    models = list(folder.glob("*.onnx")) or list(folder.glob(f"*{IR_SUFFIX}"))
    if not models:
        raise ArtifactError(f"{path}: no exported model in {folder}: run gmtool export {path}")
    return max(models, key=lambda model: model.stat().st_mtime)


def _missing_model(path: Path) -> ArtifactError:
    """Return the error of a model that does not exist, with the models that do."""
    line = f"model {path}: no such file or run folder"
    runs = sorted({str(model.parent.parent) for model in RUNS_DIR.glob(f"**/{EXPORT_DIR}/*.onnx")})
    beside = sorted(str(model) for model in path.parent.glob("*.onnx"))
    if not runs and not beside:
        return ArtifactError(
            f"{line}; expected a model_*.onnx of gmtool export, and none is below {RUNS_DIR}/: train a run with "
            "gmtool train, then gmtool export it"
        )
    close = get_close_matches(str(path), [*runs, *beside], n=1, cutoff=0.5)
    if close:
        return ArtifactError(f"{line}; did you mean {close[0]}?")
    return ArtifactError(f"{line}; exported: {some_names([*beside, *runs])}")


def _model_of_checkpoint(path: Path) -> Path:
    """Return the ONNX model that was exported last from a checkpoint's JSON or weights.

    Raises:
        ArtifactError: There is none.
        CheckpointError: The checkpoint is damaged.
    """
    run = path.parent.parent
    is_json = path.suffix == ".json"
    weights_sha256 = read_checkpoint_file(path).sha256 if is_json else sha256_of_file(path)
    models = sorted((run / EXPORT_DIR).glob("*.onnx"), key=lambda model: model.stat().st_mtime, reverse=True)
    for model in models:
        if read_sealed_spec(model.read_bytes(), where=model).provenance.weights_sha256 == weights_sha256:
            return model
    source = path if is_json else run
    raise ArtifactError(f"{path} is a checkpoint, and no model was exported from it: run gmtool export {source}")


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
