"""What goes to which stream: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


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
    stderr().print(line, markup=False)


def result(text: str) -> None:
    """Print a result, on stdout, as it is."""
    stdout().print(text, markup=False)
