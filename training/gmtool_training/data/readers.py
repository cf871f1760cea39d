"""Readers: functions from the index of a sample to its image, or its image and mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.images import UInt8Array

LabeledReader = Callable[[int], tuple[UInt8Array, UInt8Array]]
"""Returns image (H, W, 3) and mask (H, W), uint8, of a sample by index; raises `DataError`."""
ImageReader = Callable[[int], UInt8Array]
"""Returns the image (H, W, 3) uint8 of a sample by index; raises `DataError`."""


def labeled_files(samples: Sequence[Sample], classes: ClassSet, config: DataConfig) -> LabeledReader:
    """Return a reader that decodes the files of image and mask at each call."""
    return partial(_read_labeled_at, samples, classes, config)


def image_files(samples: Sequence[Sample]) -> ImageReader:
    """Return a reader that decodes the image file at each call; it opens no mask."""
    return partial(_read_image_at, samples)


def read_labeled(sample: Sample, classes: ClassSet, config: DataConfig) -> tuple[UInt8Array, UInt8Array]:
    """Return an image (H, W, 3) and its mask (H, W).

    Raises:
        DataError: Image or mask cannot be read, or their sizes differ.
    """
    image = sample.read_image()
    size = (image.shape[0], image.shape[1])
    return image, read_truth(sample, classes, values=config.mask_values, size=size)


# Module functions, so that they can be sent to worker processes


def _read_labeled_at(
    samples: Sequence[Sample], classes: ClassSet, config: DataConfig, index: int
) -> tuple[UInt8Array, UInt8Array]:
    return read_labeled(samples[index], classes, config)


def _read_image_at(samples: Sequence[Sample], index: int) -> UInt8Array:
    return samples[index].read_image()
