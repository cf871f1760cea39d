"""Paint labeled shapes into a label map: polygons by pixel centres, run lengths and bitmaps pixel by pixel."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from gmtool.errors import DataError
from gmtool.images import MAX_PIXELS, UInt8Array
from gmtool.labels.shapes import Bitmap, FloatArray, Geometry, Polygon, RunLengths, Shape
from gmtool.masks.coco_annotations import MAX_COORDINATE

MAX_CROSSINGS = 20_000_000
"""Largest number of points where the edges of a shape cross rows of pixels; each takes some 100 bytes."""

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spans:
    """Pixels of a shape inside an image, as horizontal runs: faster to paint than a masked rectangle."""

    rows: IntArray
    starts: IntArray
    stops: IntArray
    """First column behind each run."""
    is_cut: bool = False
    """Whether a part of the shape lies outside the image."""

    @property
    def area_px(self) -> int:
        """Number of pixels."""
        return int((self.stops - self.starts).sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Smallest rectangle with all pixels: top, left, bottom, right; the last two are exclusive."""
        return int(self.rows.min()), int(self.starts.min()), int(self.rows.max()) + 1, int(self.stops.max())


@dataclass
class Painting:
    """Label map of the shapes of an image, and counts of what was painted."""

    labels: UInt8Array
    """(H, W): class indices, ignore index, and `ground` where no shape is."""
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


def paint(
    shapes: Sequence[Shape],
    size: tuple[int, int],
    index_of: Mapping[str, int],
    *,
    ground: int,
    smaller_on_top: bool = False,
) -> Painting:
    """Paint shapes in the order of `z_order`, equal ones as they are listed.

    Args:
        shapes: Shapes of one image.
        size: (height, width) of the image, pixels.
        index_of: Class index, or the ignore index, of every label.
        ground: Value of pixels without a shape.
        smaller_on_top: Paint larger shapes first instead.

    Raises:
        DataError: A shape is damaged or too large.
    """
    # A value that tells pixels without a shape from those of shapes
    taken = {index_of[shape.label] for shape in shapes}
    free = ground if ground not in taken else next(value for value in range(256) if value not in taken)
    result = Painting(np.full(size, free, dtype=np.uint8))
    # Pixels of each shape
    found = []
    for place, shape in enumerate(shapes):
        spans = fill(shape.geometry, size)
        if spans is None:
            result.outside.append(place)
        elif not len(spans.rows):
            result.empty.append(place)
        else:
            if spans.is_cut:
                result.cut.append(place)
            found.append((-spans.area_px if smaller_on_top else shape.z_order, place, shape.label, spans))
    # Paint, the topmost last
    boxes: list[tuple[tuple[int, int, int, int], int]] = []
    flat, width = result.labels.reshape(-1), size[1]
    for _, _, label, spans in sorted(found, key=lambda item: item[:2]):
        index, box = index_of[label], spans.box
        if any(other != index and _meet(box, known) for known, other in boxes):
            result.overlap_px += _hidden_px(result.labels, spans, box, shown=(index, free))
        boxes.append((box, index))
        offsets = spans.rows * width
        for start, stop in zip((offsets + spans.starts).tolist(), (offsets + spans.stops).tolist(), strict=True):
            flat[start:stop] = index
        result.objects[label] = result.objects.get(label, 0) + 1
    result.covered_px = int(np.count_nonzero(result.labels != free))
    if free != ground:
        result.labels[result.labels == free] = ground
    return result


def fill(geometry: Geometry, size: tuple[int, int]) -> Spans | None:
    """Return the pixels of a shape in an image of a size (height, width); None if it is wholly outside.

    Raises:
        DataError: The shape is damaged or too large.
    """
    if isinstance(geometry, Polygon):
        return _fill_polygon(geometry.rings, size)
    whole = _decode_runs(geometry) if isinstance(geometry, RunLengths) else _decode_bitmap(geometry)
    return _crop(whole, geometry.top, geometry.left, size)


def _fill_polygon(rings: Sequence[FloatArray], size: tuple[int, int]) -> Spans | None:
    """Even-odd rule at pixel centres, by the places where edges cross the middle of each row.

    Not OpenCV's or Pillow's polygon: both paint the outline too, so that every shape grows by half a pixel and a
    hole shrinks; pycocotools has no holes.
    """
    height, width = size
    points = np.concatenate(rings) if rings else np.empty((0, 2))
    if not len(points) or not np.isfinite(points).all() or np.abs(points).max() > MAX_COORDINATE:
        raise DataError(f"coordinates of a polygon are missing, not finite, or beyond {MAX_COORDINATE:.0f} pixels")
    low, high = points.min(axis=0), points.max(axis=0)
    is_cut = bool(low.min() < -0.5 or high[0] > width + 0.5 or high[1] > height + 0.5)
    if high.min() <= 0 or low[0] >= width or low[1] >= height:
        return None
    # Crossings of edges, upwards or downwards, with the middle of rows
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    is_down = points[:, 1] <= ends[:, 1]
    upper, lower = np.where(is_down[:, None], points, ends), np.where(is_down[:, None], ends, points)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
    counts = last - first
    total = int(counts.sum())
    if total > MAX_CROSSINGS:
        raise DataError(
            f"a polygon of {len(points)} points crosses {total} rows; at most {MAX_CROSSINGS} are read"
        )
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    with np.errstate(divide="ignore", invalid="ignore"):  # of edges without crossing
        slope = (lower[:, 0] - upper[:, 0]) / (lower[:, 1] - upper[:, 1])
    crossing = upper[edge, 0] + (row + 0.5 - upper[edge, 1]) * slope[edge]
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    # A row has an even number of crossings; from the first to the second is inside, and so on
    key = row * (width + 1) + column
    key.sort()
    rows, starts, stops = key[::2] // (width + 1), key[::2] % (width + 1), key[1::2] % (width + 1)
    some = starts < stops
    return Spans(rows[some], starts[some], stops[some], is_cut)


def _decode_runs(runs: RunLengths) -> BoolArray:
    """Return a mask (height, width) from its run lengths."""
    counts, pixels = runs.counts, runs.height * runs.width
    if not 0 < pixels <= MAX_PIXELS:
        raise DataError(f"a mask of {runs.width}x{runs.height} pixels; expected 1 to {MAX_PIXELS}")
    if len(counts) and int(counts.min()) < 0:
        raise DataError("a run length is negative")
    total = sum(counts.tolist())  # whole numbers of Python: the sum may exceed 64 bits
    if total > pixels:
        raise DataError(f"run lengths of {total} pixels, but the mask has {runs.width}x{runs.height}")
    flat = np.zeros(pixels, dtype=bool)
    flat[:total] = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if runs.by_column:
        return flat.reshape(runs.width, runs.height).T
    return flat.reshape(runs.height, runs.width)


def _decode_bitmap(bitmap: Bitmap) -> BoolArray:
    """Return a mask from an image file: alpha if it has some, else all that is not 0."""
    try:
        with Image.open(io.BytesIO(bitmap.content), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"a mask of {image.width}x{image.height} pixels; expected at most {MAX_PIXELS}")
            has_alpha = image.mode in ("RGBA", "LA") or "transparency" in image.info
            pixels = np.asarray(image.convert("RGBA").getchannel("A") if has_alpha else image.convert("L"))
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types
        raise DataError(f"the image of a mask is damaged: {error}") from error
    inside: BoolArray = pixels != 0
    return inside


def _crop(whole: BoolArray, top: int, left: int, size: tuple[int, int]) -> Spans | None:
    """Return the part of a mask at (top, left) that lies in an image."""
    height, width = whole.shape
    rows = slice(max(0, -top), min(height, size[0] - top))
    columns = slice(max(0, -left), min(width, size[1] - left))
    if rows.stop <= rows.start or columns.stop <= columns.start:
        return None
    inside = whole[rows, columns]
    is_cut = inside.shape != whole.shape and bool(inside.sum() < whole.sum())
    # A run begins and ends where a pixel differs from the one before it
    padded = np.zeros((inside.shape[0], inside.shape[1] + 2), dtype=bool)
    padded[:, 1:-1] = inside
    row, column = np.nonzero(padded[:, 1:] != padded[:, :-1])
    at = left + columns.start
    return Spans(row[::2] + top + rows.start, column[::2] + at, column[1::2] + at, is_cut)


def _meet(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _hidden_px(labels: UInt8Array, spans: Spans, box: tuple[int, int, int, int], *, shown: tuple[int, int]) -> int:
    """Return how many pixels of a shape have another value than `shown` so far."""
    top, left, bottom, right = box
    inside = np.zeros((bottom - top, right - left), dtype=bool)
    flat, offsets = inside.reshape(-1), (spans.rows - top) * (right - left) - left
    for start, stop in zip((offsets + spans.starts).tolist(), (offsets + spans.stops).tolist(), strict=True):
        flat[start:stop] = True
    known = labels[top:bottom, left:right]
    return int(np.count_nonzero(inside & (known != shown[0]) & (known != shown[1])))
