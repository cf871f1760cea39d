"""mIoU of an exported model and of its network on the same validation images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gmtool.classes import ClassSet
from gmtool.config import MaskValues
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.errors import DataError, ParityError
from gmtool.images import UInt8Array
from gmtool.nn.model import GuidedMixNet
from gmtool.report.metrics import confusion_matrix, mean_iou
from gmtool_export.graph.deploy import NO_LABEL
from gmtool_export.int8.calibration import shrink
from gmtool_export.proof.parity import MAX_OWN_PIXELS, Runner, reference_logits


@dataclass(frozen=True)
class ImageScore:
    """Agreement with PyTorch on one image."""

    id: str
    agreement: float
    """Share of the pixels with PyTorch's label, in [0, 1]."""


@dataclass(frozen=True)
class ScoreProof:
    """mIoU of both models on the same validation images, at their own size."""

    split: str
    num_images: int
    num_listed: int
    """Images of the validation list; the scored ones are evenly spaced in it."""
    miou_pytorch: float
    """In [0, 1]."""
    miou: float
    """In [0, 1]."""
    agreement: float
    """Share of all pixels with PyTorch's label, in [0, 1]."""
    worst: ImageScore
    classes_predicted: int
    """Classes that PyTorch predicts on at least `MIN_SHARE` of all pixels."""

    @property
    def drop(self) -> float:
        """Loss of mIoU of the exported model, points; negative for a gain."""
        return 100 * (self.miou_pytorch - self.miou)


@dataclass(frozen=True)
class ScoredImages:
    """Validation images to score, with the encoding of their masks."""

    split: str
    num_listed: int
    samples: tuple[Sample, ...]
    values: MaskValues


MIN_SHARE = 0.005
"""Smallest share of the pixels for a class to count as predicted."""


def score(network: GuidedMixNet, runner: Runner, images: ScoredImages, classes: ClassSet) -> ScoreProof:
    """Score the network in PyTorch and the exported model on the same images.

    Images larger than `MAX_OWN_PIXELS` are scaled down, with their ground truth, for both.

    Raises:
        DataError: An image or a mask cannot be read, or no pixel has a class.
    """
    size = len(classes)
    matrices = np.zeros((2, size, size), dtype=np.int64)
    pixels = np.zeros(size, dtype=np.int64)
    rows: list[tuple[ImageScore, int]] = []
    # Add up both confusion matrices
    for sample in images.samples:
        image = shrink(sample.read_image(), MAX_OWN_PIXELS)
        truth = shrink(read_truth(sample, classes, values=images.values), MAX_OWN_PIXELS)
        expected = reference_logits(network, image[None]).argmax(axis=1)[0].astype(np.uint8)
        actual: UInt8Array = runner(image[None])["mask"][0]
        if (actual == NO_LABEL).any():
            raise ParityError(f"the exported model's scores of {sample.id} are not finite: nothing was written")
        for index, mask in enumerate((expected, actual)):
            matrices[index] += confusion_matrix(truth, mask, num_classes=size, ignore_index=classes.ignore_index)
        pixels += np.bincount(expected.ravel(), minlength=size)
        rows.append((ImageScore(sample.id, float((actual == expected).mean())), expected.size))
    # Report
    if not matrices.any():
        raise DataError(f"{images.split}: no pixel of {len(rows)} images has a class: nothing to score")
    return ScoreProof(
        split=images.split,
        num_images=len(rows),
        num_listed=images.num_listed,
        miou_pytorch=mean_iou(matrices[0]),
        miou=mean_iou(matrices[1]),
        agreement=_mean((row.agreement, count) for row, count in rows),
        worst=min((row for row, _ in rows), key=lambda row: row.agreement),
        classes_predicted=classes_predicted(pixels),
    )


def classes_predicted(pixels: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int:
    """Return the number of classes with at least `MIN_SHARE` of the pixels, from the pixels of each class."""
    counts = np.asarray(pixels)
    return int((counts >= MIN_SHARE * counts.sum()).sum())


def _mean(weighted: Iterable[tuple[float, int]]) -> float:
    values = list(weighted)
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
