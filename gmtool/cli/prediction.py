"""What a person sees of a prediction run while it goes on and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gmtool.console import remark

if TYPE_CHECKING:
    from gmtool_serving.predict import PredictionRun

SHOWN = 20
"""Failures and warnings that are printed; the manifest has them all."""


@contextmanager
def progress_of(run: PredictionRun, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Show on a terminal how far a run is, how fast, what each stage does and what failed.

    Yields:
        What is called after each outcome.
    """
    import sys

    from gmtool.console import speaks, stderr

    if quiet or not (sys.stderr.isatty() and speaks()):
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[stages]}", style="dim"),
        TextColumn("{task.fields[failures]}", style="red"),
    )
    with Progress(*columns, console=stderr(), refresh_per_second=4) as progress:
        task = progress.add_task("", total=run.tally.inputs, speed="", stages="", failures="")

        def update() -> None:
            tally = run.tally
            done = tally.inputs - tally.not_reached
            speed = (tally.ok + tally.failed) / max(tally.seconds, 1e-9)
            shares = run.pipeline.clocks.utilisation() if run.pipeline is not None else {}
            progress.update(
                task,
                completed=done,
                speed=f"{speed:.1f} images/s",
                stages="  ".join(f"{name} {share:.0%}" for name, share in shares.items()),
                failures=f"{tally.failed} failed" if tally.failed else "",
            )

        yield update


class Listed:
    """The first lines of one kind, and how many there were."""

    def __init__(self, kind: str) -> None:
        self.kind, self.count = kind, 0
        self._lines: list[str] = []

    def add(self, line: str | None) -> None:
        """Note a line, if there is one."""
        if line is not None:
            self.count += 1
            if self.count <= SHOWN:
                self._lines.append(line)

    def tell(self, where: object) -> None:
        """Print them."""
        for line in self._lines:
            remark(f"{self.kind}: {line}")
        if self.count > SHOWN:
            remark(f"{self.kind}: {self.count - SHOWN} more, see {where}")


def speed_line(run: PredictionRun) -> str:
    """Return what each stage takes for an image, as `speed: decode 3.1 ms, compute ...`."""
    assert run.pipeline is not None
    stages = ", ".join(f"{name} {ms:.1f} ms" for name, ms in run.pipeline.clocks.ms_per_image().items())
    return f"speed: {stages} per image"


def result_line(run: PredictionRun) -> str:
    """Return what came out, in one line."""
    tally = run.tally
    skipped = f"{tally.skipped} skipped, " if tally.skipped else ""
    not_reached = f"{tally.not_reached} not reached, " if tally.not_reached else ""
    speed = (tally.ok + tally.failed) / max(tally.seconds, 1e-9)
    return (
        f"{tally.ok} masks in {run.folder.name}, {skipped}{tally.failed} failed, {not_reached}{speed:.1f} images/s"
    )
