"""Outlines of a label map as polygons: one for each connected part, with holes, along the edges of pixels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gmtool.images import UInt8Array
from gmtool.labels.shapes import FloatArray
from gmtool.labels.simplify import simplify_ring

IntArray = npt.NDArray[np.int64]
EAST, SOUTH, WEST, NORTH = range(4)


@dataclass(frozen=True)
class OutlineOptions:
    """Detail of pre-annotations."""

    tolerance_px: float = 1.0
    """Largest distance between an outline and the edge of its pixels; 0 for the pixels themselves."""
    min_area_px: int = 16
    """Smaller parts, and smaller holes, are left out."""
    min_confidence: float = 0.0
    """Pixels below it stay without a label; from 0 to 1."""


@dataclass(frozen=True)
class Part:
    """Connected pixels of one label; pixels that touch only at a corner are not connected."""

    label: int
    rings: tuple[FloatArray, ...]
    """Outer ring, clockwise as seen in the image, then holes, counterclockwise; (N, 2) each, x and y."""
    area_px: int


def outline_parts(labels: UInt8Array, wanted: Collection[int], options: OutlineOptions) -> list[Part]:
    """Return the parts of some labels in the order of labels, larger parts first.

    The border of two parts is simplified the same way from both sides, so that no gap opens along it. Filling the
    outlines by pixel centres gives the label map back, except for pixels whose centre is within the tolerance of a
    border, and for parts and holes below the smallest area.

    Args:
        labels: Label map, (H, W).
        wanted: Labels to outline; others are like ground.
        options: Detail; its confidence is not used here.
    """
    edges = _trace(labels, wanted)
    if not len(edges.start):
        return []
    junctions = _junctions(labels)
    parts: list[Part] = []
    for label, outer, holes in _nested(edges, labels.shape[1]):
        area = _area(outer) + sum(_area(hole) for hole in holes)  # holes turn the other way
        kept = [outer, *(hole for hole in holes if -_area(hole) >= options.min_area_px)]
        if area < options.min_area_px:
            continue
        rings = tuple(_simplify(ring, junctions, options.tolerance_px) for ring in kept)
        parts.append(Part(label, rings, round(area)))
    return sorted(parts, key=lambda part: (part.label, -part.area_px, part.rings[0].tolist()))


def join_holes(rings: tuple[FloatArray, ...]) -> FloatArray:
    """Return one ring that runs into each hole and back along the same line.

    For tools whose polygons have no holes: the line encloses nothing, so that the pixels are the same.
    """
    joined = rings[0]
    for hole in sorted(rings[1:], key=lambda ring: float(ring[:, 0].min())):
        distances = ((joined[:, None] - hole[None]) ** 2).sum(axis=2)
        at, into = np.unravel_index(int(distances.argmin()), distances.shape)
        joined = np.concatenate([joined[: at + 1], hole[into:], hole[: into + 1], joined[at:]])
    return joined


@dataclass(frozen=True)
class _Edges:
    """Edges between a pixel of a wanted label and one of another, with the pixel on the right-hand side."""

    start: IntArray
    """Corner of pixels, row * (width + 1) + column."""
    direction: IntArray
    pixel: IntArray
    """row * width + column of the pixel."""
    label: IntArray
    following: list[int]
    """Next edge of the same outline."""


def _trace(labels: UInt8Array, wanted: Collection[int]) -> _Edges:
    """Return all edges, and the order in which they follow each other around a part."""
    height, width = labels.shape
    table = np.zeros(256, dtype=bool)
    table[list(wanted)] = True
    padded = np.full((height + 2, width + 2), -1, dtype=np.int16)
    padded[1:-1, 1:-1] = labels
    inner = padded[1:-1, 1:-1]
    is_wanted = table[labels]
    found = []
    # Neighbour of the pixel across the edge, and where the edge starts: clockwise around the pixel
    for direction, (down, right), (start_row, start_column) in (
        (EAST, (0, 1), (0, 0)),
        (SOUTH, (1, 2), (0, 1)),
        (WEST, (2, 1), (1, 1)),
        (NORTH, (1, 0), (1, 0)),
    ):
        other = padded[down : down + height, right : right + width]
        row, column = np.nonzero(is_wanted & (inner != other))
        start = (row + start_row) * (width + 1) + column + start_column
        found.append((start, np.full(len(row), direction), row * width + column))
    start, facing, pixel = (np.concatenate([each[place] for each in found]) for place in range(3))
    label = labels.reshape(-1)[pixel].astype(np.int64)
    # The next edge turns right if it can, so that pixels that touch at a corner stay apart
    step = np.array([1, width + 1, -1, -width - 1])[facing]
    key = start * 4 + facing
    order = np.argsort(key)
    following = np.full(len(key), -1)
    for turn in (1, 0, 3):
        wanted_key = (start + step) * 4 + (facing + turn) % 4
        place = order[np.minimum(np.searchsorted(key, wanted_key, sorter=order), max(0, len(key) - 1))]
        fits = (key[place] == wanted_key) & (label[place] == label) & (following < 0)
        following[fits] = place[fits]
    return _Edges(start, facing, pixel, label, following.tolist())


def _nested(edges: _Edges, width: int) -> Iterator[tuple[int, FloatArray, list[FloatArray]]]:
    """Yield (label, outer ring, holes) of each part."""
    # Rings, by following the edges
    ring_of = [-1] * len(edges.following)
    members: list[list[int]] = []
    for first in range(len(ring_of)):
        if ring_of[first] >= 0:
            continue
        chain, edge = [], first
        while ring_of[edge] < 0:
            ring_of[edge] = len(members)
            chain.append(edge)
            edge = edges.following[edge]
        members.append(chain)
    corners = [_corners(np.array(chain), edges, width) for chain in members]
    # A hole belongs to the ring at the left end of the run of its leftmost pixel, or to that ring's own
    north = np.flatnonzero(edges.direction == NORTH)
    north = north[np.argsort(edges.pixel[north])]
    parent = list(range(len(members)))
    for ring, chain in enumerate(members):
        if _area(corners[ring]) < 0:
            pixels = edges.pixel[chain]
            leftmost = pixels[np.argmin(pixels % width)]
            left_end = north[np.searchsorted(edges.pixel[north], leftmost, side="right") - 1]
            parent[ring] = ring_of[int(left_end)]
    holes: dict[int, list[FloatArray]] = {}
    for ring in range(len(members)):
        top = ring
        while parent[top] != top:
            top = parent[top]
        if top == ring:
            holes.setdefault(ring, [])
        else:
            holes.setdefault(top, []).append(corners[ring])
    for ring, inside in holes.items():
        yield int(edges.label[members[ring][0]]), corners[ring], inside


def _corners(chain: IntArray, edges: _Edges, width: int) -> FloatArray:
    """Return x and y of the corners of a ring, without those on straight lines."""
    turns = edges.direction[chain] != edges.direction[np.roll(chain, 1)]
    start = edges.start[chain[turns]]
    return np.stack([start % (width + 1), start // (width + 1)], axis=1).astype(np.float64)


def _area(ring: FloatArray) -> float:
    """Return the area of a ring, positive if it runs clockwise as seen in the image."""
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _junctions(labels: UInt8Array) -> npt.NDArray[np.bool_]:
    """Return which corners of pixels, (H + 1, W + 1), three or more borders meet in."""
    padded = np.full((labels.shape[0] + 2, labels.shape[1] + 2), -1, dtype=np.int16)
    padded[1:-1, 1:-1] = labels
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    count = (a != b).astype(np.uint8)
    for one, other in ((b, d), (c, d), (a, c)):
        count += one != other
    met: npt.NDArray[np.bool_] = count >= 3
    return met


def _simplify(ring: FloatArray, junctions: npt.NDArray[np.bool_], tolerance_px: float) -> FloatArray:
    if tolerance_px <= 0:
        return ring
    at = ring.astype(np.int64)
    simple = simplify_ring(ring, fixed=junctions[at[:, 1], at[:, 0]], tolerance=tolerance_px)
    return simple if len(simple) >= 3 and _area(simple) != 0 else ring
