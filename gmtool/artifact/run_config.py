"""Save and load the `config.toml` of a run folder, also for a data set that has moved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gmtool.artifact.runs import CONFIG_NAME
from gmtool.config import DataConfig, TrainConfig
from gmtool.errors import DataError
from gmtool.files import write_atomically
from gmtool.settings import Settings, build_config, dump_config, load_toml


def save_run_config(run_dir: Path, config: TrainConfig) -> None:
    """Write `config.toml` with absolute paths."""
    absolute: dict[str, Any] = {name: path.absolute() for name, path in _named_paths(config.data).items()}
    if "classes" in absolute:
        absolute["classes"] = str(absolute["classes"])
    data = replace(config.data, root=config.data.root.absolute(), **absolute)
    model = replace(config.model, init=_absolute(config.model.init))
    method = replace(config.method, teacher_run=_absolute(config.method.teacher_run))
    write_atomically(run_dir / CONFIG_NAME, dump_config(replace(config, data=data, model=model, method=method)))


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def load_run_config(run_dir: Path, changes: Settings | None = None) -> TrainConfig:
    """Read `config.toml`, with changes by dotted name.

    If `data.root` changes, lists and classes below the saved root are looked for below the new one.

    Raises:
        ConfigError: File missing or damaged, or a change with an unknown name or wrong value.
    """
    saved, changes = load_toml(run_dir / CONFIG_NAME), changes or {}
    moved: Settings = {}
    if "data.root" in changes:
        moved = _moved_paths(build_config(saved).data, Path(changes["data.root"]))
    return build_config(saved, moved, changes)


def refuse_missing_data(config: DataConfig, run_dir: Path, *, remedy: str) -> None:
    """Raise `DataError` if the data set folder of a run does not exist; `remedy` ends the message."""
    if not config.root.is_dir():
        raise DataError(f"{run_dir / CONFIG_NAME}: data.root is {config.root}, which does not exist: {remedy}")


def _moved_paths(data: DataConfig, root: Path) -> Settings:
    """Return the settings whose paths are below the root of `data`, moved to another root."""
    return {
        f"data.{name}": str(root / path.relative_to(data.root))
        for name, path in _named_paths(data).items()
        if path.is_relative_to(data.root)
    }


def _named_paths(data: DataConfig) -> dict[str, Path]:
    """Return the files in settings of `data`, by setting."""
    classes = Path(data.classes) if data.classes.endswith(".json") else None  # else a built-in name
    paths = {"labeled": data.labeled, "unlabeled": data.unlabeled, "val": data.val, "classes": classes}
    return {name: path for name, path in paths.items() if path is not None}
