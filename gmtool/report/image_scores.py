"""Scores of single images, and bootstrap intervals over images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gmtool.images import UInt8Array
from gmtool.report.metrics import Float64Array, Int64Array, predicted_pixels, ratio, true_pixels

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
CHUNK = 250
"""Resamples computed at once: 10 MB of weights for 5 000 images."""


def sha256_of_labels(labels: UInt8Array) -> str:
    """Return the SHA-256 of size and labels of a ground truth, (H, W) uint8."""
    return hashlib.sha256(f"{labels.shape}".encode() + np.ascontiguousarray(labels).tobytes()).hexdigest()


@dataclass(frozen=True)
class ImageScores:
    """Pixel counts of each scored image by class."""

    ids: tuple[str, ...]
    truth_sha256: tuple[str, ...]
    """SHA-256 of size and labels of each ground truth."""
    hits: Int64Array
    """(N, C): correctly predicted pixels of each class."""
    truth: Int64Array
    """(N, C): counted pixels of each true class."""
    predicted: Int64Array
    """(N, C): counted pixels predicted as each class."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def union(self) -> Int64Array:
        """(N, C): pixels of each class in the ground truth or the prediction."""
        return self.truth + self.predicted - self.hits

    @property
    def miou(self) -> Float64Array:
        """(N,): mean IoU of each image over its classes, in [0, 1]."""
        iou = ratio(self.hits, self.union)
        return ratio(np.nansum(iou, axis=1), np.isfinite(iou).sum(axis=1))

    @property
    def accuracy(self) -> Float64Array:
        """(N,): pixel accuracy of each image, in [0, 1]."""
        return ratio(self.hits.sum(axis=1), self.truth.sum(axis=1))

    def subset(self, places: Sequence[int]) -> ImageScores:
        """Return the images at these places, in this order."""
        chosen = list(places)
        return ImageScores(
            tuple(self.ids[place] for place in chosen),
            tuple(self.truth_sha256[place] for place in chosen),
            self.hits[chosen],
            self.truth[chosen],
            self.predicted[chosen],
        )


@dataclass
class ScoreCollector:
    """Collector of image scores."""

    num_classes: int
    _rows: list[tuple[str, str, Int64Array]] = field(default_factory=list)

    def add(self, image_id: str, truth_sha256: str, matrix: Int64Array) -> None:
        """Add an image by its confusion matrix, (C, C) or (C, C + 1)."""
        counts = np.stack([matrix.diagonal(), true_pixels(matrix), predicted_pixels(matrix)])
        self._rows.append((image_id, truth_sha256, counts))

    def scores(self) -> ImageScores:
        """Return the scores of all images in the order of `add`."""
        counts = [row[2] for row in self._rows]
        stacked = np.stack(counts) if counts else np.zeros((0, 3, self.num_classes), dtype=np.int64)
        ids, hashes = tuple(row[0] for row in self._rows), tuple(row[1] for row in self._rows)
        return ImageScores(ids, hashes, stacked[:, 0], stacked[:, 1], stacked[:, 2])


@dataclass(frozen=True)
class Interval:
    """Percentile bootstrap interval over images (Efron, 1979)."""

    low: float
    high: float
    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int = SEED


def miou_interval(images: ImageScores, *, resamples: int = RESAMPLES, seed: int = SEED) -> Interval | None:
    """Return the interval of the mIoU over images drawn with replacement; None for fewer than two images.

    A resample sums the counts of its images; its mIoU is the mean over the classes that occur in them.
    """
    if len(images) < 2:
        return None
    means = np.concatenate(
        [_mean_iou(weights, images) for weights in _weights(len(images), resamples=resamples, seed=seed)]
    )
    return _interval(means, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Difference:
    """Difference of two results over the same images."""

    miou: float
    """Difference of the mIoU, in [-1, 1]."""
    interval: Interval | None
    """Interval of that difference, from the same resamples of both; None for fewer than two images."""
    better: float | None
    """Share of the resamples with a difference above 0; None for fewer than two images."""
    iou: Float64Array
    """(C,): difference of each class's IoU; NaN for a class in neither map."""


def paired_difference(
    images: ImageScores, others: ImageScores, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Difference:
    """Return the paired difference of two results; `others` has the same images in the same order."""
    assert images.ids == others.ids
    whole = np.ones((1, len(images)))
    iou = _iou(whole, images)[0] - _iou(whole, others)[0]
    miou = float((_mean_iou(whole, images) - _mean_iou(whole, others))[0])
    if len(images) < 2:
        return Difference(miou, None, None, iou)
    differences = np.concatenate(
        [
            _mean_iou(weights, images) - _mean_iou(weights, others)
            for weights in _weights(len(images), resamples=resamples, seed=seed)
        ]
    )
    interval = _interval(differences, resamples=resamples, seed=seed)
    return Difference(miou, interval, float((differences > 0).mean()), iou)


def _weights(count: int, *, resamples: int, seed: int) -> Iterator[Float64Array]:
    """Yield the number of draws of each image, (up to CHUNK, count)."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = random.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _iou(weights: Float64Array, images: ImageScores) -> Float64Array:
    """Return IoU by resample and class; sums in float64 are exact up to 2^53 pixels."""
    return ratio(weights @ images.hits.astype(np.float64), weights @ images.union.astype(np.float64))


def _mean_iou(weights: Float64Array, images: ImageScores) -> Float64Array:
    """Return the mean IoU of each resample; NaN for a resample without counted pixels."""
    iou = _iou(weights, images)
    return ratio(np.nansum(iou, axis=1), np.isfinite(iou).sum(axis=1))


def _interval(values: Float64Array, *, resamples: int, seed: int) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high), LEVEL, resamples, seed)
