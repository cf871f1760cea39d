"""The confusion matrix of a segmentation and what is computed from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gmtool.errors import DataError
from gmtool.images import UInt8Array

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


def confusion_matrix(
    truth: UInt8Array, prediction: UInt8Array, *, num_classes: int, ignore_index: int
) -> Int64Array:
    """Count pixels by (true class, predicted class).

    Args:
        truth: Ground-truth label map, any shape; pixels equal to `ignore_index` are not counted.
        prediction: Predicted label map of the same shape.
        num_classes: Labels must lie in [0, num_classes).
        ignore_index: The ground truth's label for "do not count".

    Returns:
        Matrix (num_classes, num_classes): rows are true classes, columns predicted ones.

    Raises:
        DataError: The shapes differ, or a counted pixel has a label outside the classes.
    """
    if truth.shape != prediction.shape:
        raise DataError(f"mask of {_size(prediction)} pixels, but its ground truth has {_size(truth)}")
    counted = truth != ignore_index
    true_labels = truth[counted].astype(np.int32)
    predicted = prediction[counted].astype(np.int32)
    for what, labels in (("ground truth", true_labels), ("prediction", predicted)):
        if labels.size and labels.max() >= num_classes:
            raise DataError(f"{what} has label {labels.max()}, but there are {num_classes} classes")
    counts = np.bincount(true_labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def iou_per_class(matrix: Int64Array) -> Float64Array:
    """Return intersection over union of each class in [0, 1]; NaN where a class occurs in neither map."""
    return _ratio(np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix))


def recall_per_class(matrix: Int64Array) -> Float64Array:
    """Return the share of each true class that was found, in [0, 1]; NaN where it does not occur."""
    return _ratio(np.diag(matrix), matrix.sum(axis=1))


def mean_iou(matrix: Int64Array) -> float:
    """Return the mean IoU over the classes that occur; NaN when no pixel was counted."""
    iou = iou_per_class(matrix)
    return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")


def pixel_accuracy(matrix: Int64Array) -> float:
    """Return the share of counted pixels with the right label; NaN when no pixel was counted."""
    return float(_ratio(np.trace(matrix), matrix.sum()))


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Float64Array:
    whole = np.asarray(whole, dtype=np.float64)
    empty = np.full_like(whole, np.nan)
    ratio: Float64Array = np.divide(part, whole, out=empty, where=whole > 0)
    return ratio


def _size(mask: UInt8Array) -> str:
    return "x".join(str(length) for length in mask.shape[::-1])
