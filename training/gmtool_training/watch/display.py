"""Progress of a training run: phase, count, bar, time left, loss, images/s, and other figures as space allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from gmtool.console import remark
from gmtool.progress import ShownProgress, Status
from gmtool.report.report import percent
from gmtool_training.watch.time_left import TimeLeft

WORDS = {
    "loss": "loss",
    "images_per_s": "images/s",
    "usup": "unlabeled loss",
    "ce": "cross-entropy",
    "best": "best mIoU",
    "lr": "learning rate",
    "omega": "unlabeled weight",
    "skipped": "skipped steps",
    "grad_norm": "gradient norm",
    "cla": "image class loss",
    "dec": "labeled pair loss",
}
"""Figures by their name in `metrics.jsonl`, the most important first."""
LONG_S, JUDGED_STEPS = 2 * 3600, 5
"""Time left after so many steps from which a run on a processor is called long."""
STOPPING = "stopping: this step and the checkpoint are finished; Ctrl-C again ends at once"


class TrainingDisplay:
    """Progress on stderr; a context manager.

    Args:
        iterations: Steps of the run.
        start: Steps done.
        time_left: Estimate of the time left; None: no estimate.
        on_processor: Say once if a run is long.
    """

    def __init__(
        self,
        *,
        iterations: int,
        start: int = 0,
        time_left: TimeLeft | None = None,
        on_processor: bool = False,
    ) -> None:
        self._judged_at = start + JUDGED_STEPS if on_processor else None
        self._iterations, self._time_left = iterations, time_left
        self._status = Status("training", start, iterations, figures=("starting",))
        self._shown = ShownProgress(self._status)
        self._figures: dict[str, float | None] = {}
        self._since = time.monotonic()
        self._is_stopping = False

    def __enter__(self) -> TrainingDisplay:
        self._shown.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.__exit__(None, None, None)

    def step(self, done: int) -> None:
        """Show the number of steps done."""
        now = time.monotonic()
        self._status.done = done
        if self._time_left is not None:
            self._time_left.add_step(done, now - self._since)
            self._status.left_s, self._status.since = self._time_left.seconds(done), now
            if done == self._judged_at and (self._status.left_s or 0) > LONG_S:
                remark(
                    f"this run takes about {(self._status.left_s or 0) / 3600:.0f} hours on this processor: "
                    "gmtool train DIR --minutes N is a run that fits, --iterations N a shorter one"
                )
        self._since = now
        if self._figures:
            self._shown.tell()

    def show(self, figures: Mapping[str, float | None]) -> None:
        """Show figures; those that were shown before stay until they are replaced."""
        if self._is_stopping:
            return
        self._figures |= {name: value for name, value in figures.items() if name in WORDS}
        self._status.figures = figure_texts(self._figures)

    def drawing(self) -> None:
        """Show that pictures are drawn, until the next figures are shown."""
        if not self._is_stopping:
            self._status.figures = ("drawing pictures", *self._status.figures)

    def stopping(self) -> None:
        """Show that the run is being stopped. Called by signal handlers: it only sets a value."""
        self._is_stopping, self._status.figures = True, (STOPPING,)

    @contextmanager
    def validating(self, images: int) -> Iterator[Callable[[int], None]]:
        """Show a bar of the validation within the block, which may save and draw too.

        Yields:
            Function to call with the number of images done.
        """
        status = self._status
        training = (status.phase, status.done, status.total)
        status.figures = (f"iteration {status.done}/{self._iterations}", *status.figures)
        status.phase, status.done, status.total = "validating", 0, images

        def update(done: int) -> None:
            status.done = done
            self._shown.tell()

        try:
            yield update
        finally:
            status.phase, status.done, status.total = training
            status.figures = (STOPPING,) if self._is_stopping else figure_texts(self._figures)

    def validated(self, seconds: float) -> None:
        """Note that validation, saving and drawing took so long, which is no time of a step."""
        self._since = time.monotonic()
        self.show({})
        if self._time_left is not None:
            self._time_left.add_validation(seconds)
            self._status.left_s, self._status.since = self._time_left.seconds(self._status.done), self._since


def figure_texts(figures: Mapping[str, float | None]) -> tuple[str, ...]:
    """Return figures as texts in words that practitioners know, the most important first."""
    texts = []
    for name, words in WORDS.items():
        value = figures.get(name)
        if name not in figures or (name in ("skipped", "usup", "omega", "cla", "dec") and not value):
            continue
        if name == "images_per_s":
            texts.append(f"{_short(value)} {words}")
        elif name == "best":
            texts.append(f"{words} {percent(value, 1)} %")
        else:
            texts.append(f"{words} {_short(value)}")
    return tuple(texts)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
