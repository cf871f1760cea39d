"""Boundary IoU: IoU of the pixels near the contours of each class."""

from __future__ import annotations

import math

import numpy as np

from gmtool.errors import needs_extra
from gmtool.images import UInt8Array
from gmtool.report.metrics import Float64Array, Int64Array, count_pairs, ratio

DILATION_RATIO = 0.02
"""Width of a boundary over the image diagonal, as published."""


def boundary_counts(
    truth: UInt8Array,
    prediction: UInt8Array,
    *,
    num_classes: int,
    ignore_index: int,
    dilation_ratio: float = DILATION_RATIO,
) -> Int64Array:
    """Count, for each class, the pixels of both boundaries and of either (Cheng et al., Boundary IoU, CVPR 2021).

    The boundary of a class is its mask without the mask eroded d times by a 3x3 square, with
    d = round(`dilation_ratio` x diagonal), at least 1; the image is surrounded by no class. Pixels ignored in the
    ground truth are removed from both masks first.

    Args:
        truth: Ground-truth label map, (H, W) uint8.
        prediction: Predicted label map of the same shape; `ignore_index` means no class.
        num_classes: Labels are in [0, num_classes), or `ignore_index`.
        ignore_index: Label of ignored pixels.
        dilation_ratio: Width of a boundary over the image diagonal.

    Returns:
        (2, C): pixels in the intersection and in the union.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    width = max(1, round(dilation_ratio * math.hypot(*truth.shape)))
    inside = np.where(truth == ignore_index, np.uint8(ignore_index), prediction)
    of_truth = _boundary_labels(truth, width, ignore_index)
    of_prediction = _boundary_labels(inside, width, ignore_index)
    pairs = count_pairs(of_truth, of_prediction)
    both = pairs.diagonal()[:num_classes]
    either = pairs.sum(axis=0)[:num_classes] + pairs.sum(axis=1)[:num_classes] - both
    return np.stack([both, either])


def boundary_iou_per_class(counts: Int64Array) -> Float64Array:
    """Return boundary IoU from counts (2, C), in [0, 1]; NaN for a class in neither map."""
    return ratio(counts[0], counts[1])


def _boundary_labels(labels: UInt8Array, width: int, ignore_index: int) -> UInt8Array:
    """Return the label map with all pixels ignored that are not in the boundary of their class.

    A pixel survives `width` erosions if the square of 2 x width + 1 around it has one label, so a minimum and a
    maximum filter over the label map suffice for all classes.
    """
    with needs_extra("serve", "boundary IoU"):
        from scipy import ndimage
    size = 2 * width + 1
    # No class outside of the image: its edge is a boundary
    lowest = ndimage.minimum_filter(labels, size, mode="constant", cval=ignore_index)
    highest = ndimage.maximum_filter(labels, size, mode="constant", cval=ignore_index)
    boundary: UInt8Array = np.where(lowest == highest, np.uint8(ignore_index), labels)
    return boundary
