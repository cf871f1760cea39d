"""Log of a run: `metrics.jsonl`, TensorBoard, and a progress bar or lines on stderr."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from gmtool.console import remark, stderr
from gmtool.files import write_atomically
from gmtool.report.report import percent

SECONDS_BETWEEN_LINES = 15.0
"""Shortest time between two lines if stderr is not a terminal."""


class RunLog:
    """Log of all figures of a run; a context manager that closes its files.

    Args:
        run_dir: Folder of the run.
        iterations: Steps of the run.
        start: Steps done; events of later steps are dropped.
    """

    def __init__(self, run_dir: Path, *, iterations: int, start: int = 0) -> None:
        events_path = run_dir / "metrics.jsonl"
        if start:
            _drop_later_events(events_path, start)
        self._start_iteration = start
        self._events = events_path.open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1 if start else None)
        self._start = time.monotonic()
        self._last_line = float("-inf")
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=stderr(),
            disable=not stderr().is_terminal,
        )
        self._task = self._progress.add_task("training", total=iterations, completed=start, figures="")
        self._iterations = iterations

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._board.close()
        self._events.close()

    def step(self, iteration: int) -> None:
        """Set the progress bar to the number of steps done."""
        self._progress.update(self._task, completed=iteration)

    def event(self, kind: str, iteration: int, figures: Mapping[str, float | None]) -> None:
        """Log figures: a line in `metrics.jsonl`, TensorBoard scalars, and a text on stderr.

        Args:
            kind: "train" or "val".
            iteration: Optimiser steps done.
            figures: Scalars by name; None: undefined.
        """
        seconds = round(time.monotonic() - self._start, 3)
        self._events.write(
            json.dumps({"kind": kind, "iteration": iteration, "seconds": seconds, **figures}) + "\n"
        )
        for name, value in figures.items():
            if value is not None:
                self._board.add_scalar(f"{kind}/{name}", value, iteration)
        if kind == "val":
            text = f"validation mIoU {percent(figures['miou'])} %, best so far {percent(figures['best'])} %"
            remark(f"iteration {iteration}/{self._iterations}  {text}")
            return
        text = "  ".join(f"{name.replace('_per_', '/')} {_short(value)}" for name, value in figures.items())
        if stderr().is_terminal:
            self._progress.update(self._task, figures=text)
        elif seconds - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = seconds
            done = iteration - self._start_iteration
            left = seconds / done * (self._iterations - iteration)
            remark(f"iteration {iteration}/{self._iterations}  {text}  {left / 60:.1f} min left")


class SilentLog:
    """Log of the processes of a run other than the first: does nothing."""

    def __enter__(self) -> SilentLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, iteration: int) -> None:
        """Do nothing."""

    def event(self, kind: str, iteration: int, figures: Mapping[str, float | None]) -> None:
        """Do nothing."""


def _drop_later_events(path: Path, start: int) -> None:
    """Keep the events of steps up to `start`, without a half-written line of a killed process."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            if json.loads(line)["iteration"] <= start:
                kept.append(line + "\n")
    write_atomically(path, "".join(kept))


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
