"""Decoding an image file from anywhere into 8-bit RGB as a person sees it, or saying why not."""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import (
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401  registers its format; Pillow's own lazy way is not safe in threads
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from gmtool.errors import DataError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
MAX_PIXELS = 200_000_000
"""Larger images are refused before they are decoded (a small file can claim to hold gigabytes)."""

PNG_END = b"IEND\xaeB`\x82"

UInt8Array = npt.NDArray[np.uint8]


def read_image(path: Path) -> UInt8Array:
    """Return the image as the person who took it sees it: RGB, uint8, (H, W, 3), EXIF orientation applied.

    16-bit grey is scaled to 8 bits; an alpha channel is dropped; of several frames the first is taken.

    Raises:
        DataError: Not a regular file, not one of `FORMATS`, truncated, too large, or of a mode (float,
            32-bit integer) that has no agreed mapping to 8 bits.
    """
    image = open_image(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # broken EXIF of a good image
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright, path)
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types for damaged files
        raise DataError(f"{path}: damaged image: {error}") from error


def open_image(path: Path) -> Image.Image:
    """Open an image file without decoding its pixels; its size (as stored) and format are known after.

    Raises:
        DataError: Not a regular file, not one of `FORMATS`, or larger than `MAX_PIXELS`.
    """
    content = _read_regular_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image (of {', '.join(FORMATS)})") from error
    except Exception as error:
        raise DataError(f"{path}: damaged image: {error}") from error
    if image.format == "PNG" and PNG_END not in content:
        raise DataError(f"{path}: damaged image: it ends too early")  # Pillow may not need the last bytes
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{path}: {image.width}x{image.height} pixels; at most {MAX_PIXELS} are taken")
    return image


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of an opened image after its EXIF orientation."""
    turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def _read_regular_file(path: Path) -> bytes:
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer. O_BINARY: Windows alone has it
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path}: not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        try:
            return file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _to_rgb(image: Image.Image, path: Path) -> UInt8Array:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise DataError(f"{path}: pixels of mode {image.mode} (32-bit) have no agreed 8-bit mapping")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
