"""Simplify closed outlines within a tolerance, each border the same way from both of its sides."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gmtool.labels.shapes import FloatArray


def simplify_ring(ring: FloatArray, *, fixed: npt.NDArray[np.bool_], tolerance: float) -> FloatArray:
    """Return some of the points of a ring; no point left out is farther than `tolerance` from the result.

    Between fixed points the result depends on the line alone, not on its direction or where the ring starts: two
    rings that share a line get the same points there.

    Args:
        ring: (N, 2) points.
        fixed: (N,) points that stay, such as those where several borders meet.
        tolerance: Largest distance.
    """
    anchors = np.flatnonzero(fixed)
    if not len(anchors):
        # A border of two parts without a junction: start at its first point in reading order
        anchors = np.array([np.lexsort((ring[:, 0], ring[:, 1]))[0]])
    turned = np.concatenate([ring[anchors[0] :], ring[: anchors[0] + 1]])
    stops = [*(anchors - anchors[0]).tolist(), len(turned) - 1]
    kept: list[FloatArray] = []
    for first, last in pairwise(stops):
        line = _simplify_line(turned[first : last + 1], tolerance)
        kept.append(line[:-1])
    return np.concatenate(kept)


def _simplify_line(line: FloatArray, tolerance: float) -> FloatArray:
    """Return some of the points of a line, always the first and the last (Douglas and Peucker, 1973)."""
    if len(line) <= 2:
        return line
    if _is_backward(line):
        return _simplify_line_from(line[::-1], tolerance)[::-1]
    return _simplify_line_from(line, tolerance)


def _is_backward(line: FloatArray) -> bool:
    """Return whether a line runs against the direction in which all lines are simplified."""
    first, last, second, before = (tuple(line[place].tolist()) for place in (0, -1, 1, -2))
    return first > last if first != last else second > before


def _simplify_line_from(line: FloatArray, tolerance: float) -> FloatArray:
    keep = np.zeros(len(line), dtype=bool)
    keep[[0, -1]] = True
    open_ = [(0, len(line) - 1)]
    while open_:
        first, last = open_.pop()
        if last - first < 2:
            continue
        distances = _distances(line[first + 1 : last], line[first], line[last])
        far = int(distances.argmax())
        if distances[far] > tolerance:
            middle = first + 1 + far
            keep[middle] = True
            open_ += [(first, middle), (middle, last)]
    return line[keep]


def _distances(points: FloatArray, start: FloatArray, end: FloatArray) -> FloatArray:
    """Return the distance of points (N, 2) from a line segment, (N,)."""
    along = end - start
    length = float(along @ along)
    if length == 0:
        offset = points - start
    else:
        share = np.clip((points - start) @ along / length, 0, 1)
        offset = points - start - share[:, None] * along
    distances: FloatArray = np.hypot(offset[:, 0], offset[:, 1])
    return distances
