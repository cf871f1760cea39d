"""mIoU of an exported model and of its network on the same validation images."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gmtool.artifact.shapes import BatchShape
from gmtool.classes import ClassSet
from gmtool.config import MaskValues
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.errors import DataError, ParityError
from gmtool.images import UInt8Array
from gmtool.nn.model import GuidedMixNet
from gmtool.report.image_scores import ImageScores, Interval, miou_interval
from gmtool.report.metrics import Int64Array, confusion_matrix, mean_iou
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
    interval: Interval | None = None
    """Bootstrap interval over images of the exported model's mIoU; None for fewer than two images."""

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
    shape: BatchShape | None = None
    """Shape that a model of one shape takes: images and ground truth are brought to it."""

    def image(self, sample: Sample) -> UInt8Array:
        """Return an image as a batch, (N, H, W, 3); larger ones than `MAX_OWN_PIXELS` are scaled down."""
        image = sample.read_image()
        if self.shape is None:
            return shrink(image, MAX_OWN_PIXELS)[None]
        resized = Image.fromarray(image).resize((self.shape.width, self.shape.height))
        return np.repeat(np.array(resized)[None], self.shape.batch, axis=0)

    def truth(self, sample: Sample, classes: ClassSet) -> UInt8Array:
        """Return the ground truth of an image at the size of its batch, (H, W)."""
        truth = read_truth(sample, classes, values=self.values)
        if self.shape is None:
            return shrink(truth, MAX_OWN_PIXELS)
        size = (self.shape.width, self.shape.height)
        return np.array(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST))


class PyTorchMasks:
    """Masks of a network for the scored images: each is computed once, and kept compressed."""

    def __init__(self, network: GuidedMixNet) -> None:
        self._network = network
        self._kept: dict[str, bytes] = {}

    def of(self, sample: Sample, images: UInt8Array) -> UInt8Array:
        """Return the mask, (H, W), of the first of the images of a sample."""
        name = str(sample.image_path)
        if name not in self._kept:
            mask = reference_logits(self._network, images[:1]).argmax(axis=1)[0].astype(np.uint8)
            self._kept[name] = zlib.compress(mask.tobytes(), 1)
        kept = np.frombuffer(zlib.decompress(self._kept[name]), dtype=np.uint8)
        return kept.reshape(images.shape[1:3])


MIN_SHARE = 0.005
"""Smallest share of the pixels for a class to count as predicted."""


def score(masks: PyTorchMasks, runner: Runner, images: ScoredImages, classes: ClassSet) -> ScoreProof:
    """Score the network in PyTorch and the exported model on the same images.

    Raises:
        DataError: An image or a mask cannot be read, or no pixel has a class.
    """
    size = len(classes)
    matrices = np.zeros((2, size, size), dtype=np.int64)
    pixels = np.zeros(size, dtype=np.int64)
    rows: list[tuple[ImageScore, int]] = []
    per_image: list[Int64Array] = []
    # Add up both confusion matrices
    for sample in images.samples:
        batch, truth = images.image(sample), images.truth(sample, classes)
        expected = masks.of(sample, batch)
        actual: UInt8Array = runner(batch)["mask"][0]
        if (actual == NO_LABEL).any():
            raise ParityError(f"the exported model's scores of {sample.id} are not finite: nothing was written")
        both = [
            confusion_matrix(truth, mask, num_classes=size, ignore_index=classes.ignore_index)
            for mask in (expected, actual)
        ]
        matrices += np.stack(both)
        per_image.append(both[1])
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
        interval=_interval(np.stack(per_image)),
    )


def _interval(matrices: Int64Array) -> Interval | None:
    """Return the interval of the mIoU of images with these confusion matrices, (N, C, C)."""
    hits, truth, predicted = np.einsum("ncc->nc", matrices), matrices.sum(axis=2), matrices.sum(axis=1)
    names = tuple(map(str, range(len(matrices))))
    return miou_interval(ImageScores(names, names, hits, truth, predicted))


def classes_predicted(pixels: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int:
    """Return the number of classes with at least `MIN_SHARE` of the pixels, from the pixels of each class."""
    counts = np.asarray(pixels)
    return int((counts >= MIN_SHARE * counts.sum()).sum())


def _mean(weighted: Iterable[tuple[float, int]]) -> float:
    values = list(weighted)
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
