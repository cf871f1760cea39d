"""A run in an experiment tracker, and the figures that it receives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

End = Literal["finished", "stopped", "failed"]
PROJECT = "gmtool"
"""Project of Weights & Biases, or experiment of MLflow, unless the environment names another."""


class Tracker(Protocol):
    """A run in an experiment tracker."""

    id: str
    """Its id there; empty without a tracker."""

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Add a point to curves.

        Args:
            iteration: Optimiser steps done.
            figures: Values by name, such as "val/miou".
        """

    def summarize(self, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Set final figures, and texts such as hashes."""

    def close(self, end: End) -> None:
        """Send what is left, and say how the run ended."""


class NoTracker:
    """No tracker: does nothing."""

    id = ""

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Do nothing."""

    def summarize(self, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Do nothing."""

    def close(self, end: End) -> None:
        """Do nothing."""


def scalars(kind: str, figures: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, float]:
    """Return the known figures of a log event by name: "val/miou", "IoU/road"."""
    named = {
        f"{kind}/{name}": float(value)
        for name, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    classes = zip(class_names, figures.get("iou", ()), strict=False)
    return named | {f"IoU/{name}": float(value) for name, value in classes if value is not None}
