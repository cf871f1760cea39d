"""How well the contours of a segmentation agree: the counts behind boundary IoU."""

from __future__ import annotations

import math

import numpy as np

from gmtool.errors import needs_extra
from gmtool.images import UInt8Array
from gmtool.report.metrics import Float64Array, Int64Array, count_pairs, ratio

DILATION_RATIO = 0.02
"""Width of a boundary as a share of the image's diagonal, as published."""


def boundary_counts(
    truth: UInt8Array,
    prediction: UInt8Array,
    *,
    num_classes: int,
    ignore_index: int,
    dilation_ratio: float = DILATION_RATIO,
) -> Int64Array:
    """Count, for each class, the pixels of both boundaries and of either (Cheng et al., Boundary IoU, CVPR 2021).

    The boundary of a class is what of its mask is lost by eroding it d times with a 3x3 square, where
    d = round(`dilation_ratio` x diagonal), at least 1, and outside of the image there is no class. Pixels that the
    ground truth ignores are taken out of both masks before.

    Args:
        truth: Ground-truth label map, (H, W) uint8.
        prediction: Predicted label map of the same shape; `ignore_index` stands for no class.
        num_classes: Labels are in [0, num_classes), or `ignore_index`.
        ignore_index: The label that stands for no class.
        dilation_ratio: Width of a boundary over the image's diagonal.

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
    """Return boundary IoU from counts (2, C), in [0, 1]; NaN where a class occurs in neither map."""
    return ratio(counts[0], counts[1])


def _boundary_labels(labels: UInt8Array, width: int, ignore_index: int) -> UInt8Array:
    """Return the label map with every pixel ignored that lies deeper than `width` in its class.

    A pixel survives all erosions of its class's mask if the square of 2 x width + 1 around it has one label.
    So two filters over the label map do for all classes at once.
    """
    with needs_extra("serve", "boundary IoU"):
        from scipy import ndimage
    size = 2 * width + 1
    # No class outside of the image: there the boundary of every class begins
    lowest = ndimage.minimum_filter(labels, size, mode="constant", cval=ignore_index)
    highest = ndimage.maximum_filter(labels, size, mode="constant", cval=ignore_index)
    boundary: UInt8Array = np.where(lowest == highest, np.uint8(ignore_index), labels)
    return boundary
