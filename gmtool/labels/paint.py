"""Paint labeled shapes: label map of an image as runs, with counts of objects, overlaps and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gmtool.images import UInt8Array
from gmtool.labels.fill import IntArray, Spans, fill_all
from gmtool.labels.shapes import Shape
from gmtool.masks.label_runs import LabelRuns, ranges

NO_SHAPE = -1


@dataclass
class Painting:
    """Label map of the shapes of an image, and counts of what was painted."""

    runs: LabelRuns
    """Class indices, ignore index, and `ground` where no shape is."""
    objects: dict[str, int] = field(default_factory=dict)
    """Shapes painted, by label."""
    covered_px: int = 0
    """Pixels with a shape."""
    overlap_px: int = 0
    """Pixels in shapes of several labels."""
    cut: list[int] = field(default_factory=list)
    """Places of shapes that are partly outside the image."""
    outside: list[int] = field(default_factory=list)
    """Places of shapes that are wholly outside the image."""
    empty: list[int] = field(default_factory=list)
    """Places of shapes that contain no centre of a pixel."""

    @property
    def labels(self) -> UInt8Array:
        """Return the label map, (H, W)."""
        return self.runs.to_map()


def paint(
    shapes: Sequence[Shape],
    size: tuple[int, int],
    index_of: Mapping[str, int],
    *,
    ground: int,
    smaller_on_top: bool = False,
) -> Painting:
    """Paint shapes in the order of `z_order`, equal ones as they are listed.

    No pixel is touched: between two places where a span begins or ends, all pixels have one label.

    Args:
        shapes: Shapes of one image.
        size: (height, width) of the image, pixels.
        index_of: Class index, or the ignore index, of every label.
        ground: Value of pixels without a shape.
        smaller_on_top: Paint larger shapes first instead.

    Raises:
        DataError: A shape is damaged or too large.
    """
    nothing = LabelRuns(size, ground, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint8))
    result = Painting(nothing)
    # Pixels of each shape, the topmost last
    found: list[tuple[int, int, Spans]] = []
    for place, spans in enumerate(fill_all([shape.geometry for shape in shapes], size)):
        if spans is None:
            result.outside.append(place)
        elif not len(spans.rows):
            result.empty.append(place)
        else:
            if spans.is_cut:
                result.cut.append(place)
            found.append((-spans.area_px if smaller_on_top else shapes[place].z_order, place, spans))
    if not found:
        return result
    found.sort(key=lambda item: item[:2])
    result.objects = dict(Counter(shapes[place].label for _, place, _ in found))
    # Stretches between places where a span begins or ends; the calls of numpy that take the least time
    offsets = np.concatenate([spans.rows for _, _, spans in found]) * (size[1] + 1) + 1
    places = np.concatenate([spans.starts for _, _, spans in found] + [spans.stops for _, _, spans in found])
    spans_count = len(offsets)
    places[:spans_count] += offsets
    places[spans_count:] += offsets
    order = places.argsort(kind="stable")  # ascending parts: they are merged
    places = places[order]
    is_new = np.ones(len(places), dtype=bool)
    np.not_equal(places[1:], places[:-1], out=is_new[1:])
    bounds = places[is_new]
    lengths = bounds[1:] - bounds[:-1]  # behind the last bound is no shape
    # Stretches of each span, and their labels
    number = np.empty_like(order)
    number[order] = is_new.cumsum() - 1
    first, counts = number[:spans_count], number[spans_count:] - number[:spans_count]
    stretches = ranges(first, counts)
    indices = np.array([index_of[shapes[place].label] for _, place, _ in found], dtype=np.int16)
    of_span = indices.repeat([len(spans.rows) for _, _, spans in found])
    painted = of_span.repeat(counts)
    labels = np.full(len(bounds), NO_SHAPE, dtype=np.int16)
    labels[stretches] = painted  # of several values for a stretch, numpy keeps the last
    result.covered_px = int(lengths[labels[:-1] != NO_SHAPE].sum())
    result.overlap_px = _hidden_px(stretches, painted, lengths)
    labels[labels == NO_SHAPE] = ground
    changes = np.flatnonzero(np.concatenate([labels[:1] != ground, labels[1:] != labels[:-1]]))
    result.runs = LabelRuns(size, ground, bounds[changes], labels[changes].astype(np.uint8))
    return result


def _hidden_px(stretches: IntArray, painted: np.ndarray, lengths: IntArray) -> int:
    """Return how many pixels were painted over another label, each as often as that happened."""
    shared = np.flatnonzero((np.bincount(stretches) > 1)[stretches])
    order = shared[stretches[shared].argsort(kind="stable")]
    stretches, painted = stretches[order], painted[order]
    hides = (stretches[1:] == stretches[:-1]) & (painted[1:] != painted[:-1])
    return int(lengths[stretches[1:][hides]].sum())
