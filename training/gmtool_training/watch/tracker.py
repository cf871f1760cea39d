"""Experiment trackers, if asked for: Weights & Biases or MLflow receive settings, curves and final figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from gmtool.config import TrainConfig
from gmtool.console import announcing, remark
from gmtool.errors import TerminatedError, needs_extra
from gmtool.files import write_atomically

End = Literal["finished", "stopped", "failed"]
ID_NAME = "tracker.json"
"""Kind and id of the tracker's run, in the run folder: a resumed run goes on there."""
PROJECT = "gmtool"
"""Project of Weights & Biases, or experiment of MLflow, unless the environment names another."""


STOPS = (TerminatedError, KeyboardInterrupt, SystemExit)
"""Exceptions of a run that a person or a scheduler stopped."""


class Tracker(Protocol):
    """A run in an experiment tracker."""

    id: str
    """Its id there; empty without a tracker."""

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Add a point to curves.

        Args:
            iteration: Optimiser steps done.
            figures: Values by name, such as "val/miou".
        """

    def summarize(self, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Set final figures, and texts such as hashes."""

    def close(self, end: End) -> None:
        """Send what is left, and say how the run ended."""


class NoTracker:
    """No tracker: does nothing."""

    id = ""

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Do nothing."""

    def summarize(self, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Do nothing."""

    def close(self, end: End) -> None:
        """Do nothing."""


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
        write_atomically(run_dir / ID_NAME, json.dumps({"tracker": config.run.tracker, "id": tracker.id}) + "\n")


def scalars(kind: str, figures: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, float]:
    """Return the known figures of a log event by name: "val/miou", "IoU/road"."""
    named = {
        f"{kind}/{name}": float(value)
        for name, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    classes = zip(class_names, figures.get("iou", ()), strict=False)
    return named | {f"IoU/{name}": float(value) for name, value in classes if value is not None}


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
    saved = json.loads(path.read_text(encoding="utf-8"))
    return str(saved["id"]) if saved["tracker"] == name else None
