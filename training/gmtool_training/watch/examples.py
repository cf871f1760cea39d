"""Images of a run's page: the worst validation images, and labeled ones with their masks."""

from __future__ import annotations

import math

from gmtool.classes import ClassSet
from gmtool.data.datasets import Split
from gmtool.errors import DataError
from gmtool.images import UInt8Array
from gmtool.report.metrics import Int64Array, mean_iou
from gmtool.report.pictures import Example
from gmtool_training.data.readers import LabeledReader

SHOWN = 4
"""Images of each kind on the page."""


class WorstImages:
    """The images of a validation with the lowest mIoU, with their masks."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._found: list[Example] = []

    def takes(self, matrix: Int64Array) -> bool:
        """Return whether an image with this confusion matrix is among the worst so far."""
        miou = mean_iou(matrix)
        return not math.isnan(miou) and (len(self._found) < SHOWN or miou < self._found[-1].miou)

    def add(
        self, index: int, image: UInt8Array, truth: UInt8Array, prediction: UInt8Array, matrix: Int64Array
    ) -> None:
        """Keep an image if it is among the worst.

        Args:
            index: Its place in the split.
            image: RGB, (H, W, 3).
            truth: True classes, (H, W).
            prediction: Predicted classes, (H, W).
            matrix: Its confusion matrix.
        """
        if not self.takes(matrix):
            return
        miou = mean_iou(matrix)
        example = Example(self._split.samples[index].id, "worst", miou, image, truth, prediction)
        self._found = sorted([*self._found, example], key=lambda each: each.miou)[:SHOWN]

    def clear(self) -> None:
        """Forget the images of the validation before."""
        self._found = []

    @property
    def examples(self) -> tuple[Example, ...]:
        """The worst images, the worst first."""
        return tuple(self._found)


def labeled_examples(split: Split, classes: ClassSet, read: LabeledReader) -> tuple[Example, ...]:
    """Return labeled images from all over the list; those that cannot be read are left out."""
    count = len(split.samples)
    found = []
    for index in sorted({place * count // SHOWN for place in range(SHOWN)}):
        try:
            image, mask = read(index)
        except DataError:
            continue
        found.append(Example(split.samples[index].id, "labeled", math.nan, image.copy(), mask.copy(), mask.copy()))
    return tuple(found)
