"""Output of commands: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TextIO

from gmtool.escaping import printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


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
    """Print one line on stderr; control characters are escaped."""
    if speaks():
        _print(printable(line), stderr, sys.stderr)


def result(text: str) -> None:
    """Print one or several lines on stdout; control characters are escaped."""
    if speaks():
        _print(printable_lines(text), stdout, sys.stdout)


def cell(text: str) -> Text:
    """Return the text of a table cell, without markup."""
    from rich.text import Text

    return Text(printable(text))


def _print(text: str, console: Callable[[], Console], stream: TextIO) -> None:
    # Loading rich for a plain line would double the time of a small command
    if "rich.console" in sys.modules:
        console().print(text, markup=False, emoji=False)
    else:
        print(text, file=stream)


@contextmanager
def announcing(what: str, *, after_s: float = 2.0) -> Iterator[None]:
    """Print what the block does if it takes longer than `after_s` seconds."""
    timer = threading.Timer(after_s, remark, (f"{what} ...",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def speaks() -> bool:
    """Return whether this process prints: under `torchrun` only the first one does."""
    return os.environ.get("RANK", "0") == "0"
