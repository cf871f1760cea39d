"""Log of a run: `metrics.jsonl`, TensorBoard, an experiment tracker, and progress on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from PIL import Image

from gmtool.artifact.run_record import EVENTS_NAME
from gmtool.console import remark
from gmtool.files import write_atomically
from gmtool.report.report import percent
from gmtool_training.watch.display import TrainingDisplay
from gmtool_training.watch.time_left import TimeLeft
from gmtool_training.watch.tracker import NoTracker, Tracker, scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

WORST = "worst validation images"
"""Name of their picture in TensorBoard."""


class RunLog:
    """Log of all figures of a run; a context manager that closes its files.

    Args:
        run_dir: Folder of the run.
        iterations: Steps of the run.
        start: Steps done; events of later steps are dropped.
        time_left: Estimate of the time left.
        class_names: Names of the classes, for TensorBoard and the tracker.
        on_processor: Say once if the run takes hours.
        tracker: Experiment tracker that receives all figures too; None: none.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        iterations: int,
        start: int = 0,
        time_left: TimeLeft | None = None,
        class_names: Sequence[str] = (),
        on_processor: bool = False,
        tracker: Tracker | None = None,
    ) -> None:
        events_path = run_dir / EVENTS_NAME
        self.earlier_s = _drop_later_events(events_path, start) if start else 0.0
        """Seconds of a resumed run before this process."""
        self._events = events_path.open("a", encoding="utf-8", buffering=1)
        self._board_dir, self._start_iteration = run_dir / "tensorboard", start
        self._board: SummaryWriter | None = None
        self._start = time.monotonic() - self.earlier_s
        self._display = TrainingDisplay(
            iterations=iterations, start=start, time_left=time_left, on_processor=on_processor
        )
        self._iterations, self._class_names = iterations, class_names
        self._tracker = NoTracker() if tracker is None else tracker

    def __enter__(self) -> RunLog:
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__()
        if self._board is not None:
            self._board.close()
        self._events.close()

    def step(self, iteration: int) -> None:
        """Show the number of steps done."""
        self._display.step(iteration)

    def validating(self, images: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show a bar of the validation within the block; yield what is called with the number of images done."""
        return self._display.validating(images)

    def validated(self, seconds: float) -> None:
        """Note that validation, saving and drawing took so long."""
        self._display.validated(seconds)

    def drawing(self) -> None:
        """Show that pictures are drawn."""
        self._display.drawing()

    def stopping(self) -> None:
        """Show that the run is being stopped."""
        self._display.stopping()

    def event(self, kind: str, iteration: int, figures: Mapping[str, Any]) -> None:
        """Log figures: a line in `metrics.jsonl`, TensorBoard scalars, and a text on stderr.

        Args:
            kind: "train", "val", or "final": the last weights on all validation images, where "val" took fewer.
            iteration: Optimiser steps done.
            figures: Scalars by name; None: undefined. `iou`: those of all classes, as a list.
        """
        seconds = round(time.monotonic() - self._start, 3)
        self._events.write(
            json.dumps({"kind": kind, "iteration": iteration, "seconds": seconds, **figures}) + "\n"
        )
        board = self._open_board()
        known = scalars(kind, figures, self._class_names)
        for name, value in known.items():
            board.add_scalar(name, value, iteration)
        self._tracker.log(iteration, known)
        self._display.show(figures)
        if "round" in figures:
            name = f"round {figures['round']} of self-training" if figures["round"] else "labels alone"
            remark(f"{name}: validation mIoU {percent(figures['miou'])} %")
        elif kind == "val":
            text = f"validation mIoU {percent(figures['miou'])} %, best so far {percent(figures['best'])} %"
            remark(f"iteration {iteration}/{self._iterations}  {text}")
        elif kind == "final":
            remark(f"last weights on all {figures['images']} validation images: mIoU {percent(figures['miou'])} %")

    def png(self, name: str, iteration: int, picture: bytes) -> None:
        """Give TensorBoard a picture, the bytes of a PNG."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        # `add_image` takes pixels and would encode them once more
        width, height = Image.open(io.BytesIO(picture)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        writer = self._open_board().file_writer
        assert writer is not None
        writer.add_summary(summary, iteration)

    def _open_board(self) -> SummaryWriter:
        if self._board is None:
            # Its import takes half a second: after the first steps, not before
            from torch.utils.tensorboard import SummaryWriter

            start = self._start_iteration
            self._board = SummaryWriter(str(self._board_dir), purge_step=start + 1 if start else None)
        return self._board


class SilentLog:
    """Log of the processes of a run other than the first: does nothing."""

    earlier_s = 0.0

    def __enter__(self) -> SilentLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, iteration: int) -> None:
        """Do nothing."""

    @contextlib.contextmanager
    def validating(self, images: int) -> Iterator[Callable[[int], None]]:
        """Do nothing."""
        yield lambda done: None

    def validated(self, seconds: float) -> None:
        """Do nothing."""

    def drawing(self) -> None:
        """Do nothing."""

    def stopping(self) -> None:
        """Do nothing."""

    def event(self, kind: str, iteration: int, figures: Mapping[str, Any]) -> None:
        """Do nothing."""

    def png(self, name: str, iteration: int, picture: bytes) -> None:
        """Do nothing."""


def _drop_later_events(path: Path, start: int) -> float:
    """Keep the events of steps up to `start`, without a half-written line of a killed process.

    Returns:
        Seconds of the run at the last of them.
    """
    kept, seconds = [], 0.0
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event["iteration"] <= start:
                kept.append(line + "\n")
                seconds = max(seconds, float(event.get("seconds", 0.0)))
    write_atomically(path, "".join(kept))
    return seconds
