"""Samples: an image with its ground truth; images and masks found by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import Literal

from PIL import Image

from gmtool.console import remark
from gmtool.errors import DataError
from gmtool.file_kinds import IMAGE_SUFFIXES, MASK_SUFFIXES
from gmtool.folders import LeftOut, below
from gmtool.images import (
    AS_DISPLAYED,
    DecodedImage,
    Reading,
    UInt8Array,
    decode_image,
    displayed_size,
    open_image,
    read_regular_file,
)
from gmtool.masks.coco_annotations import CocoMask

Part = Literal["train", "val"]
PARTS: tuple[Part, ...] = ("train", "val")


@dataclass(frozen=True)
class Sample:
    """Image of a data set with its ground truth; `mask` is None for unlabeled images."""

    id: str
    """Path below the image folder without suffix; the same for every way in which a list names the image."""
    image_path: Path
    mask: Path | CocoMask | None
    """Mask file or COCO annotations, read by `gmtool.data.ground_truth`."""
    reading: Reading = AS_DISPLAYED

    def read_image(self) -> UInt8Array:
        """Return the image: RGB, uint8, (H, W, 3).

        Raises:
            ImageError: It cannot be read.
        """
        return self.decode().pixels

    def decode(self) -> DecodedImage:
        """Return the image with notes about its decoding.

        Raises:
            ImageError: It cannot be read.
        """
        content = read_regular_file(self.image_path)
        return decode_image(content, self.image_path, exif=self.reading.exif, bits=self.reading.bits)

    def image_size(self, image: Image.Image | None = None) -> tuple[int, int]:
        """Return (height, width) of the result of `read_image`, without decoding the image.

        Args:
            image: The image, if already open.

        Raises:
            ImageError: It cannot be opened.
        """
        image = image or open_image(self.image_path)
        return displayed_size(image) if self.reading.exif else (image.height, image.width)


def mask_file(path: Path) -> Path:
    """Return `path` if it exists, else the file beside it with another suffix of `MASK_SUFFIXES`, in any case.

    Raises:
        DataError: Several files match.
    """
    if path.is_file():
        return path
    cases = (suffix for known in MASK_SUFFIXES for suffix in (known, known.upper(), known.title()))
    others = [other for other in map(path.with_suffix, cases) if other.is_file()]
    # A case-insensitive file system lists one file under three names
    found = list({other.stat().st_ino: other for other in reversed(others)}.values())
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]} differ only in their suffix: keep one as the mask")
    return found[0] if found else path


def images_below(folder: Path, reading: Reading = AS_DISPLAYED) -> tuple[Sample, ...]:
    """Return every image in a folder and below it, without masks.

    Raises:
        DataError: The folder has no image, or two images differ only in their suffix.
    """
    images = index_images(folder)
    if not images:
        raise DataError(f"{folder}: no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return tuple(Sample(name, path, None, reading) for name, path in images.items())


def index_images(folder: Path) -> dict[str, Path]:
    """Return the images in a folder and below it by name: the relative path without suffix.

    Raises:
        DataError: Two differ only in their suffix.
    """
    images: dict[str, Path] = {}
    for relative in files_below(folder, IMAGE_SUFFIXES):
        path, name = folder / relative, PurePath(relative).with_suffix("").as_posix()
        if name in images:
            raise DataError(f"{images[name]} and {path} differ only in their suffix: keep one")
        images[name] = path
    return images


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the paths of files with these suffixes relative to a folder, and remark which were left out."""
    left_out = LeftOut()
    found = list(below(folder, suffixes=suffixes, left_out=left_out))
    if str(left_out):
        _remark_once(f"left out below {folder}: {left_out}")
    return found


@cache
def _remark_once(line: str) -> None:
    """Remark a line that several walks through the same folder would repeat."""
    remark(line)
