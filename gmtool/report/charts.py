"""Line charts as SVG paths that stretch to any width; labels are text of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gmtool.report.metrics import Float64Array

WIDTH, HEIGHT = 600, 180
MAX_POINTS = 240
"""Points of a line; with more, means of neighbours are drawn."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of lines: Okabe and Ito, Color Universal Design, 2008; readable on white and on black."""


@dataclass(frozen=True)
class Line:
    """A named line of a chart."""

    name: str
    x: Float64Array
    y: Float64Array
    """As long as `x`; NaN is a gap."""


@dataclass(frozen=True)
class Chart:
    """Paths in a box of `WIDTH` x `HEIGHT`, and the texts at its ends."""

    title: str
    paths: tuple[tuple[str, str, str], ...]
    """(name, colour, SVG path) of each line."""
    low: str
    high: str
    first: str
    last: str
    axis: str = "iteration"
    """Name of the horizontal axis."""


def chart(
    title: str, lines: Sequence[Line], *, unit: str = "", log: bool = False, axis: str = "iteration"
) -> Chart | None:
    """Return a chart of several lines over one axis; None if no value is known.

    Args:
        title: What is drawn.
        lines: Lines; one without a known value is left out.
        unit: Follows the numbers at the ends of the axis.
        log: Draw logarithms; values of 0 and below are gaps.
        axis: Name of the horizontal axis.
    """
    thinned = [_thinned(line, log=log) for line in lines]
    known = [line for line in thinned if np.isfinite(line.y).any()]
    if not known:
        return None
    (left, right), (bottom, top) = (
        (float(min(np.nanmin(values) for values in axis)), float(max(np.nanmax(values) for values in axis)))
        for axis in ([line.x for line in known], [line.y for line in known])
    )
    if top - bottom < 1e-12:
        bottom, top = bottom - 0.5, top + 0.5
    paths = tuple(
        (line.name, COLORS[place % len(COLORS)], _path(line, left, right, bottom, top))
        for place, line in enumerate(known)
    )
    low, high = ((10**value if log else value) for value in (bottom, top))
    return Chart(title, paths, f"{low:.3g}{unit}", f"{high:.3g}{unit}", f"{left:.0f}", f"{right:.0f}", axis)


def spark(values: Sequence[float | None]) -> str:
    """Return the path of a line of ratios in [0, 1] over equal steps, in a box of 100 x 24; gaps where unknown."""
    line = Line("", np.arange(len(values), dtype=float), np.array([_number(value) for value in values]))
    return _path(line, 0, max(1, len(values) - 1), 0, 1, width=100, height=24)


def _thinned(line: Line, *, log: bool) -> Line:
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    if log:
        y = np.log10(np.where(y > 0, y, np.nan))
    if len(x) <= MAX_POINTS:
        return Line(line.name, x, y)
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    means = [float(np.nanmean(y[part])) if np.isfinite(y[part]).any() else math.nan for part in parts]
    return Line(line.name, np.array([x[part].mean() for part in parts]), np.array(means))


def _path(
    line: Line, left: float, right: float, bottom: float, top: float, *, width: int = WIDTH, height: int = HEIGHT
) -> str:
    pieces, draws = [], False
    for x, y in zip(line.x, line.y, strict=True):
        if not math.isfinite(y):
            draws = False
            continue
        across = width * (x - left) / max(right - left, 1e-12)
        up = height - 4 - (height - 8) * (y - bottom) / max(top - bottom, 1e-12)
        pieces.append(f"{'L' if draws else 'M'}{across:.1f} {up:.1f}")
        if not draws:
            pieces.append("h.1")  # a single point shows as a dot
        draws = True
    return "".join(pieces)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
