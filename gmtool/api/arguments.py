"""Types and checks of arguments that several functions share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gmtool.errors import UsageError

if TYPE_CHECKING:
    from gmtool_serving.pipeline.model import Model

    from gmtool.settings import Settings

PathLike: TypeAlias = str | os.PathLike[str]
"""A path. Results of `train` and `export` are paths too: of the run folder, of the model."""
ModelLike: TypeAlias = "PathLike | Model | None"
"""Exported model, run folder (its newest model), loaded model, or None for the newest model below `runs/`."""
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Size: TypeAlias = str | tuple[int, int]
"""Height and width, pixels: (512, 1024) or "512x1024"."""


def as_path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def given(named: Mapping[str, Any]) -> Settings:
    """Return the settings that are not None, with paths as text."""
    return {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in named.items()
        if value is not None
    }


def refuse(options: Mapping[str, object], why: str) -> None:
    """Raise for the first option that was given."""
    for option, value in options.items():
        if value:
            raise UsageError(f"{option} {why}")


def refuse_idle(options: Mapping[str, object], *, used: bool, needs: str) -> None:
    """Raise for the first option that was given though nothing would look at it."""
    if not used:
        refuse(options, f"does nothing without {needs}")
