"""What each image contributes to a score, and how far the score may be trusted: bootstrap over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gmtool.report.metrics import Float64Array, Int64Array, predicted_pixels, ratio, true_pixels

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
CHUNK = 250
"""Resamples computed at once: 5 000 images are then 10 MB of weights."""


@dataclass(frozen=True)
class ImageScores:
    """Counts of each scored image, from which every figure of a subset of the images follows."""

    ids: tuple[str, ...]
    truth_sha256: tuple[str, ...]
    """Hash of each ground truth as it was counted: its size and labels."""
    hits: Int64Array
    """(N, C): pixels of each class that were found."""
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
        """(N,): mean IoU of each image over the classes that occur in it, in [0, 1]."""
        iou = ratio(self.hits, self.union)
        return ratio(np.nansum(iou, axis=1), np.isfinite(iou).sum(axis=1))

    @property
    def accuracy(self) -> Float64Array:
        """(N,): share of each image's counted pixels with the right label."""
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
    """Gathers images one after another."""

    num_classes: int
    _rows: list[tuple[str, str, Int64Array]] = field(default_factory=list)

    def add(self, image_id: str, truth_sha256: str, matrix: Int64Array) -> None:
        """Add an image by its confusion matrix, (C, C) or (C, C + 1)."""
        counts = np.stack([matrix.diagonal(), true_pixels(matrix), predicted_pixels(matrix)])
        self._rows.append((image_id, truth_sha256, counts))

    def scores(self) -> ImageScores:
        """Return all of them, in the order in which they came."""
        counts = [row[2] for row in self._rows]
        stacked = np.stack(counts) if counts else np.zeros((0, 3, self.num_classes), dtype=np.int64)
        ids, hashes = tuple(row[0] for row in self._rows), tuple(row[1] for row in self._rows)
        return ImageScores(ids, hashes, stacked[:, 0], stacked[:, 1], stacked[:, 2])


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval over images (Efron, 1979)."""

    low: float
    high: float
    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int = SEED


def miou_interval(images: ImageScores, *, resamples: int = RESAMPLES, seed: int = SEED) -> Interval | None:
    """Return the interval of the mIoU over images drawn with replacement; None for fewer than two images.

    Each resample adds the counts of its images and takes the mean IoU over the classes that occur in them.
    """
    if len(images) < 2:
        return None
    means = np.concatenate(
        [_mean_iou(weights, images) for weights in _weights(len(images), resamples=resamples, seed=seed)]
    )
    return _interval(means, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Difference:
    """One result minus another over the same images."""

    miou: float
    """Difference of the mIoU, in [-1, 1]."""
    interval: Interval | None
    """Of that difference, with the same images drawn for both; None for fewer than two images."""
    better: float | None
    """Share of the resamples in which the difference is above 0."""
    iou: Float64Array
    """(C,): difference of each class's IoU; NaN where it occurs in neither."""


def paired_difference(
    images: ImageScores, others: ImageScores, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Difference:
    """Compare two results image by image: `others` must hold the same images in the same order."""
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
    """Yield how often each image was drawn, (up to CHUNK, count)."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = random.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _iou(weights: Float64Array, images: ImageScores) -> Float64Array:
    """Return IoU by resample and class. Sums of pixels in float64 are exact up to 2^53."""
    return ratio(weights @ images.hits.astype(np.float64), weights @ images.union.astype(np.float64))


def _mean_iou(weights: Float64Array, images: ImageScores) -> Float64Array:
    """Return the mean IoU of each resample; NaN where it drew nothing that counts."""
    iou = _iou(weights, images)
    return ratio(np.nansum(iou, axis=1), np.isfinite(iou).sum(axis=1))


def _interval(values: Float64Array, *, resamples: int, seed: int) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high), LEVEL, resamples, seed)
