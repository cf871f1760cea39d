"""Confusion matrix of a segmentation, and metrics computed from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gmtool.errors import DataError
from gmtool.images import UInt8Array

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

MAX_RUN_SHARE = 0.2
"""Share of label changes above which pixels are counted one by one instead of by runs."""


def count_pairs(truth: UInt8Array, prediction: UInt8Array) -> Int64Array:
    """Return the number of pixels by (true label, predicted label), (256, 256) int64.

    Runs of equal pixels are counted with their length if there are few of them, which is several times faster than
    counting pixels, and exact in float64.

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
        ignore_index: Label of ignored pixels in the ground truth.
        allow_no_class: Accept `ignore_index` in the prediction as no class: the pixel is a false negative of its
            true class, and no false positive.

    Returns:
        Matrix (C, C): rows are true classes, columns predicted ones. With `allow_no_class` it is (C, C + 1):
        the last column has the pixels without a predicted class.

    Raises:
        DataError: The shapes differ, or a counted pixel has a label outside the classes.
    """
    if truth.shape != prediction.shape:
        raise DataError(f"mask of {_size(prediction)} pixels, but its ground truth has {_size(truth)}")
    return matrix_of_pairs(
        count_pairs(truth, prediction),
        num_classes=num_classes,
        ignore_index=ignore_index,
        allow_no_class=allow_no_class,
    )


def matrix_of_pairs(
    counts: Int64Array, *, num_classes: int, ignore_index: int, allow_no_class: bool = False
) -> Int64Array:
    """Return the matrix of `confusion_matrix` from pixels by (true label, predicted label), (256, 256).

    Raises:
        DataError: A counted pixel has a label outside the classes.
    """
    counts = counts.copy()
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
    """Return intersection over union of each class in [0, 1]; NaN for a class in neither map."""
    hits = _hits(matrix)
    return ratio(hits, predicted_pixels(matrix) + true_pixels(matrix) - hits)


def recall_per_class(matrix: Int64Array) -> Float64Array:
    """Return the recall of each class, in [0, 1]; NaN for absent classes. Also called class accuracy."""
    return ratio(_hits(matrix), true_pixels(matrix))


def precision_per_class(matrix: Int64Array) -> Float64Array:
    """Return the precision of each class, in [0, 1]; NaN for classes that are not predicted."""
    return ratio(_hits(matrix), predicted_pixels(matrix))


def mean_iou(matrix: Int64Array) -> float:
    """Return the mean IoU over the classes that occur, in [0, 1]; NaN if no pixel was counted."""
    return mean_of_known(iou_per_class(matrix))


def pixel_accuracy(matrix: Int64Array) -> float:
    """Return the share of correct pixels, in [0, 1]; NaN if no pixel was counted."""
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
    """Return the mean of the values that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    # Added in order like the official scripts, for equal bits
    return float(known.cumsum()[-1] / known.size) if known.size else float("nan")


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Float64Array:
    """Return part / whole; NaN where the whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    empty = np.full_like(whole, np.nan)
    quotient: Float64Array = np.divide(part, whole, out=empty, where=whole > 0)
    return quotient


def _hits(matrix: Int64Array) -> Int64Array:
    return matrix.diagonal()  # first C entries, also of a (C, C + 1) matrix


def _refuse_labels(what: str, pixels: Int64Array, num_classes: int) -> None:
    """Refuse labels outside of the classes; `pixels` (256 - num_classes,) are their counts."""
    labels = np.flatnonzero(pixels[num_classes:])
    if labels.size:
        raise DataError(f"{what} has label {labels[-1] + num_classes}, but there are {num_classes} classes")


def _size(mask: UInt8Array) -> str:
    return "x".join(str(length) for length in mask.shape[::-1])
