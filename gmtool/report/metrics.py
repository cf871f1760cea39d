"""The confusion matrix of a segmentation and what is computed from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gmtool.errors import DataError
from gmtool.images import UInt8Array

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

MAX_RUN_SHARE = 0.2
"""Label maps in which more of the pixels differ from the one before are counted pixel by pixel."""


def count_pairs(truth: UInt8Array, prediction: UInt8Array) -> Int64Array:
    """Count pixels by (true label, predicted label), whatever the labels mean: (256, 256).

    Label maps are made of runs of equal pixels. Where there are few, each is counted once, times its length:
    several times faster than counting pixels, and exact, since the lengths are added in float64.

    Args:
        truth: Label map, uint8, any shape.
        prediction: Label map of the same shape.
    """
    assert truth.dtype == prediction.dtype == np.uint8
    pairs = truth.reshape(-1).astype(np.uint16)
    pairs <<= 8
    pairs |= prediction.reshape(-1)
    changes = pairs[1:] != pairs[:-1]
    if np.count_nonzero(changes) > MAX_RUN_SHARE * pairs.size:
        counts = np.bincount(pairs, minlength=1 << 16)
    else:
        starts = np.concatenate(([0], np.flatnonzero(changes) + 1)) if pairs.size else np.zeros(0, np.intp)
        lengths = np.diff(starts, append=pairs.size)
        counts = np.bincount(pairs[starts], weights=lengths, minlength=1 << 16)
    return counts.astype(np.int64, copy=False).reshape(256, 256)


def confusion_matrix(
    truth: UInt8Array, prediction: UInt8Array, *, num_classes: int, ignore_index: int, allow_no_class: bool = False
) -> Int64Array:
    """Count pixels by (true class, predicted class).

    Args:
        truth: Ground-truth label map, uint8, any shape; pixels equal to `ignore_index` are not counted.
        prediction: Predicted label map of the same shape.
        num_classes: Labels must lie in [0, num_classes).
        ignore_index: The ground truth's label for "do not count".
        allow_no_class: Take `ignore_index` in the prediction for "none of the classes": such a pixel counts
            as missed, and as no class's false alarm.

    Returns:
        Matrix (C, C): rows are true classes, columns predicted ones. With `allow_no_class` it is (C, C + 1):
        the last column holds the pixels that were given no class.

    Raises:
        DataError: The shapes differ, or a counted pixel has a label outside the classes.
    """
    if truth.shape != prediction.shape:
        raise DataError(f"mask of {_size(prediction)} pixels, but its ground truth has {_size(truth)}")
    counts = count_pairs(truth, prediction)
    counts[ignore_index] = 0
    _refuse_labels("ground truth", counts.sum(axis=1), num_classes)
    counted = counts[:num_classes]
    columns = list(range(num_classes))
    if allow_no_class:
        columns.append(ignore_index)
    outside = counted.sum(axis=0)
    outside[columns] = 0
    _refuse_labels("prediction", outside, num_classes)
    return counted[:, columns]


def iou_per_class(matrix: Int64Array) -> Float64Array:
    """Return intersection over union of each class in [0, 1]; NaN where a class occurs in neither map."""
    hits = _hits(matrix)
    return ratio(hits, predicted_pixels(matrix) + true_pixels(matrix) - hits)


def recall_per_class(matrix: Int64Array) -> Float64Array:
    """Return the share of each true class that was found, in [0, 1]; NaN where it does not occur.

    Tools for segmentation call it the accuracy of a class.
    """
    return ratio(_hits(matrix), true_pixels(matrix))


def precision_per_class(matrix: Int64Array) -> Float64Array:
    """Return the share of the pixels predicted as a class that are right, in [0, 1]; NaN where there are none."""
    return ratio(_hits(matrix), predicted_pixels(matrix))


def mean_iou(matrix: Int64Array) -> float:
    """Return the mean IoU over the classes that occur; NaN when no pixel was counted."""
    return mean_of_known(iou_per_class(matrix))


def pixel_accuracy(matrix: Int64Array) -> float:
    """Return the share of counted pixels with the right label; NaN when no pixel was counted."""
    return float(ratio(_hits(matrix).sum(), matrix.sum()))


def true_pixels(matrix: Int64Array) -> Int64Array:
    """Return the counted pixels of each true class, (C,)."""
    total: Int64Array = matrix.sum(axis=1)
    return total


def predicted_pixels(matrix: Int64Array) -> Int64Array:
    """Return the counted pixels predicted as each class, (C,)."""
    total: Int64Array = matrix.sum(axis=0)[: len(matrix)]
    return total


def mean_of_known(values: Float64Array) -> float:
    """Return the mean of the values that are not NaN; NaN when all are."""
    known = values[~np.isnan(values)]
    # Added one after another, as the official scripts do: the same to the last bit
    return float(known.cumsum()[-1] / known.size) if known.size else float("nan")


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Float64Array:
    """Return part / whole; NaN where the whole is nothing."""
    whole = np.asarray(whole, dtype=np.float64)
    empty = np.full_like(whole, np.nan)
    quotient: Float64Array = np.divide(part, whole, out=empty, where=whole > 0)
    return quotient


def _hits(matrix: Int64Array) -> Int64Array:
    return matrix.diagonal()  # of a matrix with one column more too: its first C entries


def _refuse_labels(what: str, pixels: Int64Array, num_classes: int) -> None:
    """Refuse pixels (256,) by label at and beyond the number of classes."""
    labels = np.flatnonzero(pixels[num_classes:])
    if labels.size:
        raise DataError(f"{what} has label {labels[-1] + num_classes}, but there are {num_classes} classes")


def _size(mask: UInt8Array) -> str:
    return "x".join(str(length) for length in mask.shape[::-1])
