"""Against the authors' own way: a mask a class, eroded again and again by OpenCV."""

import cv2
import numpy as np
import pytest

from gmtool.images import UInt8Array
from gmtool.report.boundary import boundary_counts, boundary_iou_per_class


def of_the_authors(mask: UInt8Array, dilation_ratio: float = 0.02) -> UInt8Array:
    """Return the boundary of a binary mask as in boundary-iou-api (mask_to_boundary)."""
    height, width = mask.shape
    dilation = max(1, round(dilation_ratio * float(np.sqrt(height**2 + width**2))))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), dtype=np.uint8), iterations=dilation)
    boundary: UInt8Array = mask - eroded[1:-1, 1:-1].astype(np.uint8)
    return boundary


def blobs(seed: int, height: int, width: int) -> UInt8Array:
    random = np.random.default_rng(seed)
    fields = [cv2.resize(random.random((6, 8)), (width, height), interpolation=cv2.INTER_CUBIC) for _ in range(4)]
    labels: UInt8Array = np.argmax(fields, axis=0).astype(np.uint8)
    return labels


@pytest.mark.parametrize(("height", "width"), [(60, 90), (150, 200), (9, 7)])
def test_boundaries_are_those_of_the_published_code(height: int, width: int) -> None:
    truth, prediction = blobs(1, height, width), blobs(2, height, width)
    prediction[: height // 2] = truth[: height // 2]
    truth[2 : height // 4, width // 3 :] = 255
    counts = boundary_counts(truth, prediction, num_classes=5, ignore_index=255)
    for label in range(4):
        seen = (prediction == label) & (truth != 255)
        one, two = (of_the_authors(mask.astype(np.uint8)).astype(bool) for mask in (truth == label, seen))
        assert counts[:, label].tolist() == [(one & two).sum(), (one | two).sum()]
    iou = boundary_iou_per_class(counts)
    assert np.isnan(iou[4])
    assert (iou[:4] < 1).all() and (iou[:4] > 0).all()


def test_what_is_right_wherever_it_counts_is_perfect() -> None:
    truth = blobs(3, 80, 100)
    prediction = truth.copy()
    truth[20:40, 30:60] = 255
    iou = boundary_iou_per_class(boundary_counts(truth, prediction, num_classes=4, ignore_index=255))
    assert iou.tolist() == [1, 1, 1, 1]
