"""A run in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from gmtool.errors import ConfigError
from gmtool_training.watch.tracker import PROJECT, End

EXIT_CODES: dict[End, int] = {"finished": 0, "stopped": 130, "failed": 1}


class WandbTracker:
    """A run in Weights & Biases; `WANDB_MODE`, `WANDB_PROJECT` and its other variables hold.

    Args:
        run_dir: Run folder: its name is that of the run, and files lie in `wandb/` beside it.
        settings: Settings by dotted name.
        earlier: Id of the run to go on with; None: a new one.

    Raises:
        ConfigError: No login, or it cannot be reached.
    """

    def __init__(self, run_dir: Path, settings: Mapping[str, Any], earlier: str | None) -> None:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=run_dir.name,
                dir=run_dir.parent,
                config=dict(settings),
                id=earlier,
                resume="allow" if earlier else None,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"run.tracker=wandb: {' '.join(str(error).split())} Or set WANDB_MODE=offline"
            ) from error
        self.id = str(self._run.id)

    @property
    def place(self) -> str:
        """Line that says where the run is seen."""
        if self._run.url is None:
            folder = Path(self._run.dir).parent
            return f"Weights & Biases, offline: wandb sync {folder} sends it"
        return f"Weights & Biases: {self._run.url}"

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Add a point to curves."""
        self._run.log(dict(figures), step=iteration)

    def summarize(self, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Set final figures, and texts such as hashes."""
        self._run.summary.update({**figures, **texts})

    def close(self, end: End) -> None:
        """Send what is left, and say how the run ended."""
        self._run.finish(exit_code=EXIT_CODES[end])
