"""Which files a mask becomes: the formats of the benchmarks and of people's own tools, as bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
from PIL import Image

from gmtool.classes import ClassSet, load_classes
from gmtool.coco import ImageId
from gmtool.errors import ConfigError, DataError
from gmtool.images import UInt8Array
from gmtool.masks import PNG_COMPRESSION, encode_mask
from gmtool.spec import OutputName

FormatName = Literal["voc", "voc-submission", "cityscapes", "trainids", "color", "overlay", "coco", "npz"]
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)

VOC_RESULTS = PurePosixPath("results/VOC2012/Segmentation/comp6_test_cls")
"""Where VOC's development kit looks for masks; 6 is the competition in which any training data is allowed."""
COCO_PIECES = "pieces"
"""Folder of the COCO results of each image, from which `finish` makes one file."""
IMAGE_ENDING = "_leftImg8bit"


@dataclass(frozen=True)
class MaskItem:
    """What is known of one image when its mask is encoded."""

    output: PurePosixPath
    """`InputImage.output`: relative path without suffix."""
    mask: UInt8Array
    """Class indices (or `ignore_index`), (H, W)."""
    confidence: UInt8Array | None = None
    """Largest probability times 255, (H, W); for formats of which `needs_confidence` holds."""
    pixels: UInt8Array | None = None
    """The image, RGB, (H, W, 3); for formats of which `needs_pixels` holds."""
    coco_id: ImageId | None = None
    """`InputImage.coco_id`."""


def needs_confidence(name: FormatName) -> bool:
    """Return whether the format holds how sure the model is."""
    return name == "npz"


def needs_pixels(name: FormatName) -> bool:
    """Return whether the format shows the image."""
    return name == "overlay"


def format_dirs(out: Path, formats: Sequence[FormatName]) -> dict[FormatName, Path]:
    """Return the folder of each format: `out` for one, else `out/FORMAT` for each of them."""
    return {name: out if len(set(formats)) == 1 else out / name for name in formats}


def check_formats(formats: Sequence[FormatName], classes: ClassSet, outputs: Sequence[OutputName]) -> None:
    """Refuse, before anything is computed, formats that a model cannot give.

    Raises:
        ConfigError: A benchmark's format of other classes than its own, or confidence of a model without it.
    """
    raise NotImplementedError


def check_names(formats: Sequence[FormatName], outputs: Iterable[PurePosixPath]) -> None:
    """Refuse images that would share a file: VOC and Cityscapes take names without folders or endings.

    Raises:
        DataError: Two images have one file in one of the formats.
    """
    raise NotImplementedError


def paths(name: FormatName, output: PurePosixPath) -> list[PurePosixPath]:
    """Return the files of one image, relative to the format's folder, without encoding anything."""
    raise NotImplementedError


def encode(name: FormatName, item: MaskItem, classes: ClassSet) -> list[tuple[PurePosixPath, bytes]]:
    """Return the files of one image: path relative to the format's folder, and content. The same in, the same out.

    The paths are those that `paths` gives. Safe in threads and in processes.
    """
    raise NotImplementedError
