"""A run in MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from gmtool.console import remark
from gmtool.errors import ConfigError
from gmtool_training.watch.tracker import PROJECT, End

STATUS: dict[End, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
PARAMS_AT_ONCE = 100
"""Parameters that MLflow takes in one request."""


class MlflowTracker:
    """A run in MLflow; `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` hold.

    Once a request fails, no more is sent: training goes on without the tracker.

    Args:
        run_dir: Run folder: its name is that of the run.
        settings: Settings by dotted name.
        earlier: Id of the run to go on with; None: a new one.

    Raises:
        ConfigError: No server or store that can be used.
    """

    def __init__(self, run_dir: Path, settings: Mapping[str, Any], earlier: str | None) -> None:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        try:
            self._client = MlflowClient()
            found = self._client.get_experiment_by_name(experiment)
            parent = found.experiment_id if found else self._client.create_experiment(experiment)
            if earlier is None:
                self.id = str(self._client.create_run(parent, run_name=run_dir.name).info.run_id)
                params = [Param(name, str(value)) for name, value in settings.items()]
                for start in range(0, len(params), PARAMS_AT_ONCE):
                    self._client.log_batch(self.id, params=params[start : start + PARAMS_AT_ONCE])
            else:
                self.id = earlier
                self._client.update_run(earlier, status="RUNNING")  # its parameters cannot change
        except (MlflowException, ModuleNotFoundError) as error:
            first = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"run.tracker=mlflow: {first}: set MLFLOW_TRACKING_URI to a server, or for a database on this "
                "machine pip install mlflow"
            ) from error
        self._is_lost = False

    @property
    def place(self) -> str:
        """Line that says where the run is seen."""
        return f"MLflow: run {self.id} at {self._client.tracking_uri}"

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Add a point to curves."""
        now = int(1000 * time.time())
        metrics = [Metric(_allowed(name), value, now, iteration) for name, value in figures.items()]
        self._try(partial(self._client.log_batch, self.id, metrics=metrics))

    def summarize(self, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Set final figures, and texts such as hashes, which are tags."""
        self.log(0, figures)
        for name, text in texts.items():
            self._try(partial(self._client.set_tag, self.id, name, text))

    def close(self, end: End) -> None:
        """Say how the run ended."""
        self._try(partial(self._client.set_terminated, self.id, STATUS[end]))

    def _try(self, send: Callable[[], object]) -> None:
        if self._is_lost:
            return
        try:
            send()
        except MlflowException as error:
            self._is_lost = True
            remark(f"warning: MLflow is left out from now on: {' '.join(str(error).split())[:200]}")


def _allowed(name: str) -> str:
    """Return a name with `_` for characters that MLflow refuses."""
    return re.sub(r"[^\w\-. :/]", "_", name)
