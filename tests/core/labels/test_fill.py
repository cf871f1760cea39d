"""Painting of shapes: polygons against the definition, run lengths against pycocotools, order and counts."""

import io
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from gmtool.errors import DataError
from gmtool.labels import fill as module
from gmtool.labels.fill import fill
from gmtool.labels.paint import paint
from gmtool.labels.shapes import Bitmap, Geometry, Polygon, RunLengths, Shape, ellipse, rectangle

SIZE = (20, 30)
INDEX = {"a": 1, "b": 2, "background": 0, "__ignore__": 255}


def pixels(geometry: Geometry, size: tuple[int, int] = SIZE) -> npt.NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    spans = fill(geometry, size)
    if spans is not None:
        for row, start, stop in zip(spans.rows, spans.starts, spans.stops, strict=True):
            assert not mask[row, start:stop].any()
            mask[row, start:stop] = True
        assert spans.area_px == mask.sum()
    return mask


def even_odd(rings: list[npt.NDArray[np.float64]], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The definition: a centre is inside if a ray to the left crosses the outlines an odd number of times."""
    mask = np.zeros(size, dtype=bool)
    for row, column in product(*map(range, size)):
        x, y = column + 0.5, row + 0.5
        for ring in rings:
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if (y0 <= y) != (y1 <= y):
                    mask[row, column] ^= x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_polygons_with_holes_are_filled_by_the_even_odd_rule_at_pixel_centres(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rings = [rng.uniform(-6, 34, (int(rng.integers(3, 9)), 2)) for _ in range(1 + seed % 2)]
    np.testing.assert_array_equal(pixels(Polygon(tuple(rings))), even_odd(rings, SIZE))


def test_a_rectangle_of_whole_coordinates_is_exactly_its_pixels() -> None:
    expected = np.zeros(SIZE, dtype=bool)
    expected[3:9, 4:11] = True
    np.testing.assert_array_equal(pixels(rectangle(11, 9, 4, 3)), expected)


def test_an_ellipse_has_the_pixels_whose_centres_are_in_it() -> None:
    rows, columns = np.mgrid[:20, :30] + 0.5
    inside = ((columns - 14.2) / 9.7) ** 2 + ((rows - 9.6) / 6.1) ** 2 < 1
    assert (pixels(ellipse(14.2, 9.6, 9.7, 6.1)) != inside).sum() <= 2
    np.testing.assert_array_equal(pixels(ellipse(14.2, 9.6, 6.1, 9.7, 90)), pixels(ellipse(14.2, 9.6, 9.7, 6.1)))


@pytest.mark.parametrize("by_column", [False, True])
def test_run_lengths_are_those_of_pycocotools(by_column: bool) -> None:
    mask = np.random.default_rng(0).integers(0, 2, SIZE).astype(bool)
    flat = (mask.T if by_column else mask).reshape(-1)
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    np.testing.assert_array_equal(pixels(RunLengths(counts, *SIZE, by_column=by_column)), mask)
    if by_column:
        encoded = coco_mask.frPyObjects({"size": list(SIZE), "counts": counts.tolist()}, *SIZE)
        np.testing.assert_array_equal(coco_mask.decode(encoded).astype(bool), mask)


def test_bitmaps_are_placed_and_cut_at_the_border() -> None:
    patch = np.array([[0, 9], [7, 255]], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(patch).save(buffer, "PNG")
    spans = fill(Bitmap(buffer.getvalue(), left=29, top=-1), SIZE)
    assert spans is not None and spans.is_cut
    assert (spans.rows.tolist(), spans.starts.tolist(), spans.stops.tolist()) == ([0], [29], [30])
    assert fill(Bitmap(buffer.getvalue(), left=30), SIZE) is None


def test_later_shapes_smaller_shapes_or_higher_orders_are_on_top() -> None:
    large, small = rectangle(0, 0, 10, 10), rectangle(2, 2, 4, 4)
    shapes = [Shape("b", small), Shape("a", large)]
    hidden = paint(shapes, SIZE, INDEX, ground=0)
    assert (hidden.labels == 2).sum() == 0 and hidden.overlap_px == 4
    by_size = paint(shapes, SIZE, INDEX, ground=0, smaller_on_top=True)
    ordered = paint([Shape("b", small, z_order=1), Shape("a", large)], SIZE, INDEX, ground=0)
    for painting in (by_size, ordered):
        assert (painting.labels == 2).sum() == 4 and (painting.labels == 1).sum() == 96
        assert painting.covered_px == 100 and painting.overlap_px == 4
        assert painting.objects == {"a": 1, "b": 1}
    same = paint([Shape("a", small), Shape("a", large)], SIZE, INDEX, ground=0)
    assert same.overlap_px == 0


def test_shapes_of_background_and_of_ignored_ground_are_covered_pixels() -> None:
    shapes = [Shape("background", rectangle(0, 0, 3, 1)), Shape("__ignore__", rectangle(3, 0, 5, 1))]
    painting = paint(shapes, SIZE, INDEX, ground=0)
    assert painting.covered_px == 5 and (painting.labels == 255).sum() == 2
    painting = paint(shapes, SIZE, INDEX, ground=255)
    assert painting.covered_px == 5 and (painting.labels == 0).sum() == 3


def test_shapes_outside_cut_or_without_a_pixel_are_counted() -> None:
    shapes = [
        Shape("a", rectangle(-9, -9, -1, -1)),
        Shape("a", rectangle(25, 15, 40, 40)),
        Shape("a", rectangle(4.6, 4.6, 4.9, 4.9)),
        Shape("a", rectangle(0, 0, 30, 20)),
    ]
    painting = paint(shapes, SIZE, INDEX, ground=0)
    assert (painting.outside, painting.cut, painting.empty) == ([0], [1], [2])


@pytest.mark.parametrize(
    "geometry",
    [
        Polygon((np.array([[0, 0], [1e9, 0], [0, 1e9]], dtype=float),)),
        Polygon((np.array([[0, 0], [np.nan, 0], [0, 5]], dtype=float),)),
        Polygon(()),
        RunLengths(np.array([5, 2**62]), 20, 30),
        RunLengths(np.array([-1, 3]), 20, 30),
        RunLengths(np.array([1, 1]), 10**6, 10**6),
        Bitmap(b"\x89PNG\r\n\x1a\n broken"),
        Bitmap(b""),
    ],
)
def test_hostile_shapes_are_refused_before_memory_is_used(geometry: Geometry) -> None:
    with pytest.raises(DataError):
        fill(geometry, SIZE)


def test_a_polygon_that_crosses_too_many_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CROSSINGS", 100)
    zigzag = np.array([(x, y) for x in range(10) for y in (0, 20)], dtype=float)
    with pytest.raises(DataError, match="crosses 400 rows; at most 100"):
        fill(Polygon((zigzag,)), SIZE)
