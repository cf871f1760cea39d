"""Open the experiment tracker of a run, if one is asked for: Weights & Biases or MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gmtool.config import TrainConfig
from gmtool.console import announcing, remark
from gmtool.errors import ConfigError, TerminatedError, needs_extra
from gmtool.files import write_atomically
from gmtool.json_toml import read_json, typed
from gmtool_training.watch.tracker import NoTracker, Tracker

ID_NAME = "tracker.json"
"""Kind and id of the tracker's run, in the run folder: a resumed run goes on there."""
STOPS = (TerminatedError, KeyboardInterrupt, SystemExit)
"""Exceptions of a run that a person or a scheduler stopped."""


@dataclass(frozen=True)
class SavedTracker:
    """Content of `tracker.json`."""

    tracker: str
    """`run.tracker`."""
    id: str
    """Its id of the run."""


def refuse_missing_tracker(name: str) -> None:
    """Raise `MissingExtraError` if the package of a tracker is not installed; it is not imported."""
    if name == "none":
        return
    with needs_extra(name, f"run.tracker={name}"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(name=name)


@contextmanager
def open_tracker(config: TrainConfig, run_dir: Path, *, is_first: bool) -> Iterator[Tracker]:
    """Yield the tracker of `run.tracker`, and close it with how the block ended.

    Args:
        config: Settings of the run.
        run_dir: Run folder, which may not exist yet; a resumed run's names the run to go on with.
        is_first: Whether this is the first process of the run: the others have no tracker.

    Raises:
        MissingExtraError: Its package is not installed.
        GmtoolError: It cannot be reached, or needs a login.
    """
    tracker = _opened(config, run_dir) if is_first else NoTracker()
    try:
        yield tracker
    except BaseException as error:
        tracker.close("stopped" if isinstance(error, STOPS) else "failed")
        raise
    tracker.close("finished")


def save_tracker_id(run_dir: Path, config: TrainConfig, tracker: Tracker) -> None:
    """Write kind and id of a tracker into the run folder, if there is one."""
    if tracker.id:
        saved = SavedTracker(config.run.tracker, tracker.id)
        write_atomically(run_dir / ID_NAME, json.dumps(asdict(saved)) + "\n")


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """Return all settings by dotted name, as JSON values."""
    tree: dict[str, dict[str, Any]] = json.loads(json.dumps(asdict(config), default=str))
    return {f"{section}.{name}": value for section, table in tree.items() for name, value in table.items()}


def _opened(config: TrainConfig, run_dir: Path) -> Tracker:
    name = config.run.tracker
    if name == "none":
        return NoTracker()
    settings, earlier = flat_settings(config), _earlier_id(run_dir, name)
    opened: Tracker
    with needs_extra(name, f"run.tracker={name}"), announcing(f"starting {name}"):
        if name == "wandb":
            from gmtool_training.watch.wandb_tracker import WandbTracker

            opened = WandbTracker(run_dir, settings, earlier)
        else:
            from gmtool_training.watch.mlflow_tracker import MlflowTracker

            opened = MlflowTracker(run_dir, settings, earlier)
    remark(opened.place)
    return opened


def _earlier_id(run_dir: Path, name: str) -> str | None:
    """Return the id that a run folder has of a tracker."""
    path = run_dir / ID_NAME
    if not path.is_file():
        return None
    saved = typed(SavedTracker, read_json(path, error=ConfigError), where=str(path), error=ConfigError)
    return saved.id if saved.tracker == name else None
