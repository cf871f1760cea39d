"""How a sample becomes pixels: functions from its index to its image, or to its image and its mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.images import UInt8Array

LabeledReader = Callable[[int], tuple[UInt8Array, UInt8Array]]
"""From the index of a sample to its image (H, W, 3) and its mask (H, W); raises DataError."""
ImageReader = Callable[[int], UInt8Array]
"""From the index of a sample to its image (H, W, 3); raises DataError."""


def labeled_files(samples: Sequence[Sample], classes: ClassSet, config: DataConfig) -> LabeledReader:
    """Return a reader of images and masks that decodes their files at each call."""
    return partial(_read_labeled_at, samples, classes, config)


def image_files(samples: Sequence[Sample]) -> ImageReader:
    """Return a reader of images that decodes their files at each call. It opens no mask."""
    return partial(_read_image_at, samples)


def read_labeled(sample: Sample, classes: ClassSet, config: DataConfig) -> tuple[UInt8Array, UInt8Array]:
    """Return an image (H, W, 3) and its mask (H, W).

    Raises:
        DataError: One of them cannot be used, or their sizes differ.
    """
    image = sample.read_image()
    size = (image.shape[0], image.shape[1])
    return image, read_truth(sample, classes, values=config.mask_values, size=size)


# Functions of the module, so that a worker process can be sent one


def _read_labeled_at(
    samples: Sequence[Sample], classes: ClassSet, config: DataConfig, index: int
) -> tuple[UInt8Array, UInt8Array]:
    return read_labeled(samples[index], classes, config)


def _read_image_at(samples: Sequence[Sample], index: int) -> UInt8Array:
    return samples[index].read_image()
