"""Checked values of labeling tools' JSON: points, numbers, texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmtool.labels.shapes import FloatArray, Problem


def points_of(value: Any) -> FloatArray | None:
    """Return [[x, y], ...] or [x, y, x, y, ...] as (N, 2); None if it is neither."""
    if not isinstance(value, list) or not value:
        return None
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if array.ndim == 1 and len(array) % 2 == 0:
        array = array.reshape(-1, 2)
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        return None
    return array


def numbers_of(value: dict[str, Any], *names: str) -> tuple[float, ...] | None:
    """Return finite numbers by name; None if one is missing or no number."""
    found: list[Any] = [value.get(name, 0.0 if name == "rotation" else None) for name in names]
    if not all(type(each) in (int, float) and abs(each) < 1e12 for each in found):
        return None
    return tuple(float(each) for each in found)


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """Return (height, width) in pixels, which may be whole floats; None if they are missing or no size."""
    if all(type(each) in (int, float) and 1 <= each < 1e9 and each == int(each) for each in (height, width)):
        return int(height), int(width)
    return None


def damaged(where: str, why: str) -> Problem:
    """Return the problem of a shape that cannot be read."""
    return Problem("damaged shapes", where, f"{where}: {why}: left out")


def no_area(where: str, kind: str) -> Problem:
    """Return the problem of a shape that covers no area."""
    return Problem(
        f"{kind} without area", where, f"{where}: {kind} has no area: left out; draw polygons, masks or rectangles"
    )


def unclosed(where: str, count: int) -> Problem:
    """Return the problem of a polygon with too few points, or that was never closed."""
    return Problem(
        "unclosed or empty shapes", where, f"{where}: polygon of {count} points is not closed or empty: left out"
    )
