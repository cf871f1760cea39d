"""Calibration images of int8 models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from gmtool.config import DataConfig
from gmtool.data.datasets import load_training_data
from gmtool.data.layouts import reading_of
from gmtool.errors import DataError, GmtoolError
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.files import sha256_of_lines
from gmtool.folders import below
from gmtool.images import AS_DISPLAYED, Reading, UInt8Array, read_image

T = TypeVar("T")

NUM_IMAGES = 32
"""Number of calibration images."""
MAX_PIXELS = 320_000
"""Limit to which larger images are scaled down, so that attention and the ranges of all layers fit into memory."""


@dataclass(frozen=True)
class Calibration:
    """Calibration images with their source."""

    source: str
    """Description of their origin."""
    paths: tuple[Path, ...]
    reading: Reading = AS_DISPLAYED

    @property
    def sha256(self) -> str:
        """SHA-256 of the file names, in order."""
        return sha256_of_lines([path.name for path in self.paths])

    def read(self) -> list[UInt8Array]:
        """Return the images, RGB, (H, W, 3) uint8 each.

        Raises:
            DataError: An image cannot be read.
        """
        exif, bits = self.reading.exif, self.reading.bits
        return [shrink(read_image(path, exif=exif, bits=bits), MAX_PIXELS) for path in self.paths]


def training_images(config: DataConfig) -> Calibration:
    """Return labeled and unlabeled training images of a run, spread evenly over both lists.

    Raises:
        DataError: The run's data is missing.
    """
    try:
        data = load_training_data(config)
    except GmtoolError as error:
        raise DataError(
            f"the run's training images are needed to calibrate int8 ({error}): or give --calibration DIR"
        ) from error
    labeled = [sample.image_path for sample in data.labeled.samples]
    unlabeled = [sample.image_path for sample in data.unlabeled.samples]
    few = min(len(unlabeled), NUM_IMAGES // 2)
    chosen = (*spread(labeled, NUM_IMAGES - few), *spread(unlabeled, few))
    return Calibration(
        f"{len(chosen) - few} labeled and {few} unlabeled training images", chosen, reading_of(config)
    )


def images_of_folder(folder: Path, *, option: str) -> list[Path]:
    """Return all images below a folder.

    Args:
        folder: Folder.
        option: Command-line option that named it, for messages.

    Raises:
        DataError: The folder is missing or contains no image.
    """
    if not folder.is_dir():
        raise DataError(f"{option} {folder}: no such folder")
    paths = [folder / path for path in below(folder, suffixes=IMAGE_SUFFIXES)]
    if not paths:
        raise DataError(f"{option} {folder}: no image in it")
    return paths


def calibration_images(folder: Path | None, config: DataConfig) -> Calibration:
    """Return the images of `--calibration`, or else training images of the run."""
    if folder is None:
        return training_images(config)
    chosen = spread(images_of_folder(folder, option="--calibration"), NUM_IMAGES)
    return Calibration(f"{len(chosen)} images of {folder}", chosen, reading_of(config))


def spread(items: Sequence[T], count: int) -> tuple[T, ...]:
    """Return at most `count` items, evenly spaced, in order."""
    count = min(count, len(items))
    return tuple(items[index * len(items) // count] for index in range(count))


def shrink(image: UInt8Array, pixels: int) -> UInt8Array:
    """Return an image (H, W, 3) or a mask (H, W), uint8, scaled down to at most `pixels` pixels."""
    height, width = image.shape[:2]
    factor = (pixels / (height * width)) ** 0.5
    if factor >= 1:
        return image
    how = Image.Resampling.BILINEAR if image.ndim == 3 else Image.Resampling.NEAREST
    size = (max(int(width * factor), 1), max(int(height * factor), 1))
    return np.array(Image.fromarray(image).resize(size, how))
