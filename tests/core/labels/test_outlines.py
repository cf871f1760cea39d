"""Outlines of label maps: exact without tolerance, within it otherwise, one part a connected region."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from gmtool.images import UInt8Array
from gmtool.labels.outlines import OutlineOptions, Part, join_holes, outline_parts
from gmtool.labels.paint import paint
from gmtool.labels.shapes import Polygon, Shape

LABELS = {str(label): label for label in range(256)}


def blobs(seed: int, height: int = 26, width: int = 33) -> UInt8Array:
    """Return a label map of four labels with parts, holes, and pixels that touch at corners."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(height, width)), seed % 4)
    labels: UInt8Array = np.digitize(smooth, np.quantile(smooth, [0.3, 0.6, 0.8])).astype(np.uint8)
    return labels


def filled(parts: list[Part], size: tuple[int, int], *, joined: bool) -> UInt8Array:
    shapes = [
        Shape(str(part.label), Polygon((join_holes(part.rings),) if joined else part.rings)) for part in parts
    ]
    return paint(shapes, size, LABELS, ground=0).labels


def distance_from_borders(labels: UInt8Array) -> npt.NDArray[np.float64]:
    """Return how far each pixel's centre is from the nearest edge between two labels or the image's border."""
    # On a grid of half pixels edges are points: every border is a line of them
    height, width = labels.shape
    grid = np.ones((8 * height + 1, 8 * width + 1), dtype=bool)
    padded = np.full((height + 2, width + 2), -1)
    padded[1:-1, 1:-1] = labels
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        grid[8 * row, 8 * column : 8 * column + 9] = False
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        grid[8 * row : 8 * row + 9, 8 * column] = False
    distance: npt.NDArray[np.float64] = ndimage.distance_transform_edt(grid)[4::8, 4::8] / 8
    return distance


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("joined", [False, True])
def test_without_tolerance_the_pixels_come_back(seed: int, joined: bool) -> None:
    labels = blobs(seed)
    parts = outline_parts(labels, [1, 2, 3], OutlineOptions(0, 0))
    np.testing.assert_array_equal(filled(parts, labels.shape, joined=joined), labels)
    assert len(parts) == sum(ndimage.label(labels == label)[1] for label in (1, 2, 3))
    assert sum(part.area_px for part in parts) == np.count_nonzero(labels)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.5])
def test_pixels_that_change_are_within_the_tolerance_of_a_border(seed: int, tolerance: float) -> None:
    labels = blobs(seed)
    parts = outline_parts(labels, [1, 2, 3], OutlineOptions(tolerance, 0))
    for joined in (False, True):
        changed = filled(parts, labels.shape, joined=joined) != labels
        assert (distance_from_borders(labels)[changed] <= tolerance + 1e-9).all()
    exact = outline_parts(labels, [1, 2, 3], OutlineOptions(0, 0))
    assert sum(len(r) for p in parts for r in p.rings) < sum(len(r) for p in exact for r in p.rings)


@pytest.mark.parametrize("seed", range(4))
def test_no_gap_and_no_overlap_opens_along_the_border_of_two_parts(seed: int) -> None:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(60, 80)), 7)
    labels = np.digitize(smooth, np.quantile(smooth, [0.3, 0.7])).astype(np.uint8) + np.uint8(1)
    parts = outline_parts(labels, [1, 2, 3], OutlineOptions(1, 0))
    shapes = [Shape(str(part.label), Polygon(part.rings)) for part in parts]
    painting = paint(shapes, labels.shape, LABELS, ground=0)
    assert painting.overlap_px == 0
    assert painting.covered_px == labels.size


def test_an_island_and_the_hole_that_it_fills_have_the_same_outline() -> None:
    rows, columns = np.mgrid[:60, :60]
    labels = np.ones((60, 60), dtype=np.uint8)
    labels[(rows - 31) ** 2 + (columns - 27) ** 2 < 300] = 2
    around, island = outline_parts(labels, [1, 2], OutlineOptions(1, 0))
    assert len(island.rings[0]) < 40
    assert {*map(tuple, around.rings[1].tolist())} == {*map(tuple, island.rings[0].tolist())}


def test_small_parts_and_small_holes_are_left_out() -> None:
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[2:12, 2:12] = 1
    labels[5:7, 5:7] = 0
    labels[15:18, 15:18] = 1
    (part,) = outline_parts(labels, [1], OutlineOptions(0, 10))
    assert len(part.rings) == 1 and part.area_px == 96
    assert len(outline_parts(labels, [1], OutlineOptions(0, 4))) == 2


def test_pixels_that_touch_at_a_corner_are_two_parts() -> None:
    labels = np.eye(2, dtype=np.uint8)
    assert len(outline_parts(labels, [1], OutlineOptions(1, 0))) == 2
    assert outline_parts(np.zeros((3, 3), dtype=np.uint8), [1], OutlineOptions()) == []


def test_a_part_narrower_than_the_tolerance_keeps_its_outline() -> None:
    labels = np.zeros((9, 9), dtype=np.uint8)
    labels[4, 2:5] = 1
    parts = outline_parts(labels, [1], OutlineOptions(5, 0))
    np.testing.assert_array_equal(filled(parts, (9, 9), joined=False), labels)
