"""Folders of runs and exported models; the newest of them."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from gmtool.errors import ArtifactError, CheckpointError, ConfigError

RUNS_DIR = Path("runs")
CONFIG_NAME = "config.toml"
CHECKPOINT_DIR = "checkpoints"
EXPORT_DIR = "export"


def fresh_dir(name: str) -> Path:
    """Return an unused folder name below `runs/`: `name`, else `name-2`, `name-3`, ..."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(path for path in (RUNS_DIR / candidate for candidate in names) if not path.exists())


def require_empty(folder: Path) -> Path:
    """Return `folder` if it is empty or does not exist.

    Raises:
        ConfigError: The folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already and is not empty: give another folder with --out")
    return folder


def newest_run() -> Path:
    """Return the run below `runs/` with the newest checkpoint.

    Raises:
        CheckpointError: No run exists.
    """
    checkpoints = list(RUNS_DIR.glob(f"**/{CHECKPOINT_DIR}/last.json"))
    if not checkpoints:
        raise CheckpointError(f"no trained run below {RUNS_DIR}/: name one, or train one with gmtool train")
    return max(checkpoints, key=_age_key).parent.parent


def newest_model() -> Path:
    """Return the newest exported ONNX model below `runs/`.

    Raises:
        ArtifactError: No exported model exists.
    """
    models = list(RUNS_DIR.glob(f"**/{EXPORT_DIR}/*.onnx"))
    if not models:
        raise ArtifactError(f"no exported model below {RUNS_DIR}/: give --model FILE, or run gmtool export")
    return max(models, key=_age_key)


def run_of_model(model: Path) -> Path | None:
    """Return the run folder of an exported model, or None."""
    run = model.resolve().parent.parent
    return run if (run / CONFIG_NAME).is_file() else None


def _age_key(path: Path) -> float:
    return path.stat().st_mtime
