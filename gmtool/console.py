"""What goes to which stream: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


@cache
def stderr() -> Console:
    """Return the console for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@cache
def stdout() -> Console:
    """Return the console for results."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def remark(line: str) -> None:
    """Tell the user one line, on stderr, as it is."""
    if speaks():
        _print(line, stderr, sys.stderr)


def result(text: str) -> None:
    """Print a result, on stdout, as it is."""
    if speaks():
        _print(text, stdout, sys.stdout)


def _print(text: str, console: Callable[[], Console], stream: TextIO) -> None:
    # rich is needed where it draws; loading it for a plain line would double the time of a small command
    if "rich.console" in sys.modules:
        console().print(text, markup=False)
    else:
        print(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), file=stream)


def speaks() -> bool:
    """Return whether this process talks to the user: of several that `torchrun` started, the first does."""
    return os.environ.get("RANK", "0") == "0"


def track(items: Iterable[T], *, total: int) -> Iterator[T]:
    """Pass items on; on a terminal, show on stderr how far it is, how fast, and how long it will take."""
    if not (stderr().is_terminal and speaks()):
        yield from items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    speed = TaskProgressColumn("", show_speed=True)
    with Progress(BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn(), console=stderr()) as progress:
        yield from progress.track(items, total=total)
