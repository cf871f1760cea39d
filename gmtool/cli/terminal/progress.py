"""Progress of a prediction job on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gmtool_serving.pipeline.job import Observer
from gmtool_serving.pipeline.pipeline import Outcome
from gmtool_serving.pipeline.run import PredictionRun

from gmtool.cli import signals
from gmtool.console import remark, speaks, stderr
from gmtool.errors import MessageKinds


class TerminalObserver(Observer):
    """Shows progress, lists failures and warnings, and lets a signal end the job in order."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def tell(self, line: str) -> None:
        """Print the line unless asked to be quiet."""
        if not self._quiet:
            remark(line)

    @contextmanager
    def follow(self, run: PredictionRun) -> Iterator[Callable[[Outcome], None]]:
        """Count outcomes until the last; then print failures, warnings and the speed of each stage."""
        failures, warnings = MessageKinds(), MessageKinds()

        def note(outcome: Outcome) -> None:
            if outcome.error is not None:
                failures.add(str(outcome.image), outcome.error)
            if outcome.warning is not None and not outcome.skipped:
                warnings.add(str(outcome.image), outcome.warning)
            update()

        with signals.calling_on_stop(run.interrupt), _progress_of(run, quiet=self._quiet) as update:
            yield note
        tell_kinds("warning", warnings, run.folder.manifest_name)
        tell_kinds("failed", failures, run.folder.manifest_name)
        if run.tally.ok and run.pipeline is not None:
            stages = ", ".join(f"{name} {ms:.1f} ms" for name, ms in run.pipeline.clocks.ms_per_image().items())
            self.tell(f"speed: {stages} per image")


@contextmanager
def _progress_of(run: PredictionRun, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Show on a terminal progress, speed, load of the stages and failures.

    Yields:
        What is called after each outcome.
    """
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
