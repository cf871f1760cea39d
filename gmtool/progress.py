"""Progress on stderr: two lines that fit any width of a terminal, else a plain line a few times a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from gmtool.console import remark, speaks, stderr

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 15.0
"""Shortest time between two lines where stderr is not a terminal."""
LONGEST_BAR, SHORTEST_BAR = 60, 4
"""Width of the bar in columns; below the shortest it is left out."""
GAP = "  "


@dataclass
class Status:
    """State of a phase; rich draws it as a line with a bar, and a line of the figures that fit."""

    phase: str = ""
    done: int = 0
    total: int = 0
    left_s: float | None = None
    """Seconds left at the moment `since`; None: not known yet."""
    since: float = field(default_factory=time.monotonic)
    figures: tuple[str, ...] = ()
    """Texts such as "loss 0.52", the most important first."""

    def count(self) -> str:
        """Return "training 120/4000"."""
        return f"{self.phase} {self.done}/{self.total}"

    def time_left(self) -> str:
        """Return the time left now: "12:34 left"."""
        if self.left_s is None:
            return "time left: -"
        return f"{clock(max(0.0, self.left_s - (time.monotonic() - self.since)))} left"

    def line(self) -> str:
        """Return all of it on one line, for a log."""
        return GAP.join((self.count(), self.time_left(), *self.figures))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        width = options.max_width - 1  # some terminals break a line that is full
        count, left = self.count(), self.time_left()
        bar = min(LONGEST_BAR, width - len(count) - len(left) - 2 * len(GAP))
        if bar >= SHORTEST_BAR:
            yield Text(count + GAP, style="bold", end="")
            yield ProgressBar(total=max(self.total, 1), completed=self.done, width=bar)
            yield Text(GAP + left)
        else:
            yield Text((count + GAP + left)[:width])
        yield Text(that_fit(self.figures, width), style="dim")


class ShownProgress:
    """A context manager that shows a `Status`, which its owner changes.

    Args:
        status: Shown state.
        line_after_s: Seconds between two lines off a terminal.
    """

    def __init__(self, status: Status, *, line_after_s: float = SECONDS_BETWEEN_LINES) -> None:
        self.status = status
        self._line_after_s = line_after_s
        self._last_line = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> ShownProgress:
        if stderr().is_terminal and speaks():
            from rich.live import Live

            self._live = Live(self.status, console=stderr(), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self) -> None:
        """Print a line if there is no terminal and the last one is old enough."""
        now = time.monotonic()
        if self._live is None and now - self._last_line >= self._line_after_s:
            self._last_line = now
            remark(self.status.line())


@contextmanager
def phase(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far a phase is, with its time left.

    Args:
        name: One or two words, such as "labeled images".
        total: Number of its parts.

    Yields:
        Function to call with the number of parts done so far.
    """
    status, started = Status(phase=name, total=total), time.monotonic()
    with ShownProgress(status) as shown:

        def update(done: int) -> None:
            now = time.monotonic()
            status.done = done
            if done:
                status.left_s, status.since = (now - started) / done * (total - done), now
                status.figures = (f"{done / max(now - started, 1e-9):.3g}/s",)
            shown.tell()

        yield update


def track(items: Iterable[T], *, total: int, name: str = "") -> Iterator[T]:
    """Yield items and show how many were taken."""
    with phase(name, total) as update:
        for done, item in enumerate(items):
            update(done)
            yield item


def that_fit(texts: Iterable[str], width: int) -> str:
    """Return the first texts that fit side by side into a width, in columns."""
    line = ""
    for text in texts:
        longer = line + GAP + text if line else text
        if len(longer) > width:
            break
        line = longer
    return line


def clock(seconds: float) -> str:
    """Return a duration: 0:07, 12:34, 3:12:05, or 2 d 03:12."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
