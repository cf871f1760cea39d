"""Times of the parts of a run, and the line of one that took longer than was asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gmtool.artifact.run_record import RunRecord, Stage
from gmtool.progress import clock

LATE = 1.25
"""Time over the time asked for from which a run is called late."""
IDLE = 0.8
"""Share of the time that a process computes; below, others had the processor, or it waited for files."""


class Stages:
    """Stopwatch of the parts of a run."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._processor_start = time.process_time()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time of the block to a part."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started

    @property
    def times(self) -> tuple[Stage, ...]:
        """Times of the parts, in the order in which they began."""
        return tuple(Stage(name, round(seconds, 1)) for name, seconds in self._seconds.items())

    @property
    def processor_seconds(self) -> float:
        """Time of processors that this process got since it was made."""
        return round(time.process_time() - self._processor_start, 1)


def late_text(record: RunRecord, minutes: float | None, *, on_processor: bool) -> str:
    """Return what a run took instead of the time asked for, and why if it is known; empty if it kept to it.

    Args:
        record: Record of the finished run.
        minutes: Time asked for; None: no limit.
        on_processor: Whether it was computed on a processor, so that a process without one waited.
    """
    if minutes is None or not record.stages or record.seconds <= LATE * 60 * minutes:
        return ""
    text = f"took {clock(record.seconds)} instead of the {clock(60 * minutes)} asked for"
    longest = max(record.stages, key=lambda stage: stage.seconds)
    got = record.processor_seconds
    if on_processor and got is not None and got < IDLE * record.seconds:
        text += f": it computed for {clock(got)} of that; other processes were busy, or files are slow to read"
    return f"{text}; longest: {longest.name}, {clock(longest.seconds)}"
