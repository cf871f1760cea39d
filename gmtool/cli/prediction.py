"""What a person sees of a prediction run while it goes on and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gmtool.console import remark
from gmtool.errors import MessageKinds
from gmtool.escaping import printable

if TYPE_CHECKING:
    from gmtool_serving.pipeline.run import PredictionRun


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


def tell_kinds(what: str, kinds: MessageKinds, where: str) -> None:
    """Print a line for each kind of failure or warning, and where all of them are."""
    for line in kinds.lines():
        remark(f"{what}: {line}")
    if kinds.is_cut:
        remark(f"{what}: all of them: {where}")


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
    name = printable(run.folder.name)
    return f"{tally.ok} masks in {name}, {skipped}{tally.failed} failed, {not_reached}{speed:.1f} images/s"
