"""Setting and result of a deep check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gmtool.errors import GmtoolError

State = Literal["ok", "failed", "left out"]
Place = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Setting:
    """Device and folder of a check."""

    folder: Path
    """Folder that all checks of a run share; the toy data and the toy model are in it."""
    place: Place
    """Device that is checked: the first card, or the processor where there is no card."""
    cards: int = 0
    """GPUs that torch sees."""

    @property
    def data(self) -> Path:
        """Folder of the toy data set."""
        return self.folder / "data"

    @property
    def run(self) -> Path:
        """Folder of the toy run; its models are in `export`."""
        return self.folder / "run"


@dataclass(frozen=True)
class Checked:
    """Outcome of a check that did not fail."""

    text: str
    """What was checked, with its figures, in a line."""
    left_out: str | None = None
    """Parts that could not be checked here, and why."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The figures by name, as JSON values."""


@dataclass(frozen=True)
class DeepFinding:
    """Result of a check, for people and as JSON."""

    check: str
    state: State
    text: str
    seconds: float
    left_out: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    """Last lines that the process of a failed check printed."""


class CheckFailedError(GmtoolError):
    """Something computes wrongly, or not at all."""


class LeftOutError(GmtoolError):
    """The check cannot be made on this machine."""


def require(holds: bool, otherwise: str) -> None:
    """Raise `CheckFailedError` unless a condition holds."""
    if not holds:
        raise CheckFailedError(otherwise)
