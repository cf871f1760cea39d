"""Validation images: the worst ones and the hash of the ground truth; labeled images with their masks."""

from __future__ import annotations

import math

import numpy as np
import torch

from gmtool.classes import ClassSet
from gmtool.data.datasets import Split
from gmtool.errors import DataError
from gmtool.files import sha256_of_lines
from gmtool.images import UInt8Array
from gmtool.report.image_scores import sha256_of_labels
from gmtool.report.metrics import Int64Array, mean_iou
from gmtool.report.pictures import Example
from gmtool_training.data.readers import LabeledReader
from gmtool_training.engine.machine import Machine

SHOWN = 4
"""Images of each kind on the page."""


class ValidationImages:
    """The worst images of the last validation, and hashes of the ground truth of all that were seen."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._found: list[Example] = []
        self._truths: dict[int, str] = {}

    def add(
        self, index: int, image: UInt8Array, truth: UInt8Array, prediction: UInt8Array, matrix: Int64Array
    ) -> None:
        """Note an image's ground truth, and keep the image if it is among the worst.

        Args:
            index: Its place in the split.
            image: RGB, (H, W, 3).
            truth: True classes, (H, W).
            prediction: Predicted classes, (H, W).
            matrix: Its confusion matrix.
        """
        if index not in self._truths:
            self._truths[index] = sha256_of_labels(truth) if matrix.any() else ""
        miou = mean_iou(matrix)
        if math.isnan(miou) or (len(self._found) == SHOWN and miou >= self._found[-1].miou):
            return
        example = Example(self._split.samples[index].id, "worst", miou, image, truth, prediction)
        self._found = sorted([*self._found, example], key=lambda each: each.miou)[:SHOWN]

    def clear(self) -> None:
        """Forget the worst images of the validation before."""
        self._found = []

    @property
    def worst(self) -> tuple[Example, ...]:
        """The worst images of this process, the worst first."""
        return tuple(self._found)

    def truth_sha256(self, machine: Machine) -> str | None:
        """Return the SHA-256 of the ground truth of all images with a label, as `gmtool evaluate` has it.

        All processes call this. None if an image was not seen.
        """
        # 32 bytes an image, and whether it was seen; each process knows its own
        rows = np.zeros((len(self._split.samples), 33), dtype=np.int32)
        for index, value in self._truths.items():
            rows[index] = [*(bytes.fromhex(value) or bytes(32)), 1]
        found = machine.sum(torch.from_numpy(rows).to(machine.device)).cpu().numpy()
        if not found[:, 32].all():
            return None
        return sha256_of_lines([bytes(row).hex() for row in found[:, :32].astype(np.uint8) if row.any()])


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
