"""Decode image files into 8-bit RGB, as displayed; refuse damaged, oversized and unsupported files."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import (
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401  registers its format; Pillow's lazy import is not thread-safe
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from gmtool.errors import DataError, ImageError
from gmtool.file_kinds import name_kind
from gmtool.image_formats.jpeg import decode_plain_jpeg

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""RGB values in [0, 1] that encoders were trained with."""
MEAN_COLOR = (124, 116, 104)
"""ImageNet's mean as an 8-bit colour: padding of this colour is about zero after normalisation."""
# Pillow warns of sizes, which `max_pixels` decides, and of damaged EXIF data of good images. Set once for the
# process: `warnings.catch_warnings` in one thread puts back the filters of the others.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
MAX_PIXELS = 200_000_000
"""Pixels of the largest image; larger ones are refused before decoding (a small file can claim gigabytes)."""
SHRINK = "shrink it, or predict with a higher --max-pixels"
"""Remedy for an image above the limit."""
MAX_BYTES_PER_PIXEL = 8
"""Largest file in bytes for each of `max_pixels`: four channels of 16 bits, uncompressed. Larger files are refused
before reading (a sparse file can claim terabytes)."""
MIN_MAX_BYTES = 64 << 20
"""Files up to this size are always read, since they may hold metadata or further pages."""
MAX_SCANS = 20
"""Largest number of scans of a progressive JPEG of `MAX_PIXELS`; smaller images may have more. Each scan costs the
time of a whole image; encoders write up to 18."""

DARK_BITS = 14
"""16-bit images whose values use at most this many bits likely come from a camera with fewer than 16 bits."""

PNG_END = b"IEND\xaeB`\x82"
JPEG_SCAN, JPEG_END = b"\xda", b"\xd9"
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
"""JPEG markers that are followed by a length, and the end marker."""
TRUNCATED_WORDS = ("truncated", "unrecognized data stream", "unexpected end", "not enough")
"""Texts of Pillow's errors for truncated files."""

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Reading:
    """EXIF and bit-depth handling of a data set's images (`data.exif`, `data.bits`)."""

    exif: bool = True
    """Apply the EXIF orientation."""
    bits: int = 16
    """Used bits of 16-bit grey images, 8 to 16."""


AS_DISPLAYED = Reading()


@dataclass(frozen=True)
class DecodedImage:
    """Decoded image with notes about its decoding."""

    pixels: UInt8Array
    """RGB, (H, W, 3)."""
    several_frames: bool = False
    """Whether the file has several frames or pages; this is the first."""
    dark: str | None = None
    """Reason and remedy if a 16-bit image became dark, since it uses fewer bits; else None."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return notes for the user, one line each."""
        frames = ("the first of several frames was taken",) if self.several_frames else ()
        return (*frames, self.dark) if self.dark else frames


def read_image(path: Path, *, exif: bool = True, bits: int = 16, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Return an image as displayed: RGB, uint8, (H, W, 3).

    Raises:
        ImageError: Not a regular file, or refused by `decode_image`.
    """
    content = read_regular_file(path, max_bytes=max_file_bytes(max_pixels))
    return decode_image(content, path, exif=exif, bits=bits, max_pixels=max_pixels).pixels


def decode_image(
    content: bytes,
    path: Path,
    *,
    exif: bool = True,
    bits: int = 16,
    max_pixels: int = MAX_PIXELS,
    writable: bool = True,
    room: UInt8Array | None = None,
) -> DecodedImage:
    """Decode the content of an image file.

    16-bit grey is scaled to 8 bits, an alpha channel is dropped, and the first of several frames is used.

    Args:
        content: Content of the file.
        path: Name of the file, for messages.
        exif: Apply the EXIF orientation; False: keep the stored orientation.
        bits: Used bits of 16-bit grey images, 8 to 16: 2 ** bits - 1 becomes 255.
        max_pixels: Larger images are refused before decoding.
        writable: Return pixels that may be written to, which can cost a copy.
        room: (N,) memory where the pixels of an ordinary JPEG are put, if they fit.

    Raises:
        ImageError: Not one of `FORMATS`, truncated, damaged, too large, of a mode without a defined mapping to 8
            bits (float, 32-bit integer), or 16-bit with values above 2 ** bits - 1.
    """
    image = _open(content, path, max_pixels)
    plain = decode_plain_jpeg(content, image, exif=exif, room=room)
    if plain is not None:
        return DecodedImage(plain)
    return _convert(image, path, exif=exif, bits=bits, in_place=True, writable=writable)


def convert_image(
    image: Image.Image, name: Path, *, exif: bool = True, bits: int = 16, max_pixels: int = MAX_PIXELS
) -> DecodedImage:
    """Return the pixels of a PIL image as those of a file, and leave it as it is; see `decode_image`.

    Raises:
        ImageError: Truncated, damaged, too large, or of a mode that has no agreed mapping to 8 bits.
    """
    if not 0 < image.width * image.height <= max_pixels:
        raise ImageError(
            "too_large" if image.width * image.height else "unsupported",
            f"{name}: {image.width}x{image.height} pixels; 1 to {max_pixels} are taken",
        )
    return _convert(image, name, exif=exif, bits=bits, in_place=False)


def _convert(
    image: Image.Image, path: Path, *, exif: bool, bits: int, in_place: bool, writable: bool = True
) -> DecodedImage:
    several = image.format != "MPO" and bool(
        getattr(image, "is_animated", False)
    )  # MPO frames are previews of phones
    # Pillow keeps only the upper byte of 16-bit colour
    is_deep_color = is_16_bit(image) and not image.mode.startswith("I;16")
    try:
        if exif and in_place:
            ImageOps.exif_transpose(image, in_place=True)
        elif exif:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            pixels, largest = _scale_grey(np.asarray(image), bits, path)
        else:
            pixels = _to_rgb(image, path, writable=writable)
            largest = 256 * int(pixels.max()) if is_deep_color else 0
        return DecodedImage(pixels, several, _why_dark(largest, bits, is_color=is_deep_color))
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types for damaged files
        raise _damaged(path, error) from error


def open_image(path: Path) -> Image.Image:
    """Open an image file without decoding its pixels; size (as stored) and format are known.

    Raises:
        ImageError: Not a regular file, not one of `FORMATS`, or larger than `MAX_PIXELS`.
    """
    return _open(read_regular_file(path), path, MAX_PIXELS)


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of an opened image after its EXIF orientation."""
    turned = orientation_of(image) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def displayed_size_of(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image file after its EXIF orientation.

    Of a JPEG that is not progressive, which may hide hundreds of scans, only the header is read.

    Raises:
        ImageError: See `open_image`.
    """
    with _open_regular_file(path) as file, contextlib.suppress(Exception):  # told by what reads the whole file
        image = Image.open(file, formats=("JPEG",))
        is_small = image.width * image.height <= MAX_PIXELS
        if image.format == "JPEG" and not image.info.get("progressive") and is_small:
            return displayed_size(image)
    return displayed_size(open_image(path))


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 without EXIF."""
    orientation: object = image.getexif().get(0x0112)
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def is_16_bit(image: Image.Image) -> bool:
    """Return whether an opened image has 16 bits a channel."""
    return image.mode.startswith("I;16") or any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def max_file_bytes(max_pixels: int) -> int:
    """Return the largest size in bytes of a file with an image of `max_pixels`."""
    return max(MAX_BYTES_PER_PIXEL * max_pixels, MIN_MAX_BYTES)


def read_regular_file(path: Path, *, max_bytes: int = MAX_BYTES_PER_PIXEL * MAX_PIXELS) -> bytes:
    """Return the content of a regular file; pipes and devices are refused without blocking.

    Raises:
        ImageError: The file cannot be read, is larger than `max_bytes`, or is not a regular file.
    """
    with _open_regular_file(path, max_bytes=max_bytes) as file:
        try:
            return file.read()
        except OSError as error:
            raise ImageError("unreadable", f"{path}: cannot be read: {_reason(error)}") from error


def _open_regular_file(path: Path, *, max_bytes: int = MAX_BYTES_PER_PIXEL * MAX_PIXELS) -> BinaryIO:
    try:
        # O_NONBLOCK: do not wait for the writer of a named pipe. O_BINARY: Windows only
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError("unreadable", f"{path}: cannot be read: {_reason(error)}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ImageError("not_a_file", f"{path}: not a regular file")
    if status.st_size > max_bytes:
        os.close(descriptor)
        raise ImageError("too_large", f"{path}: the file has {status.st_size} bytes; expected at most {max_bytes}")
    return os.fdopen(descriptor, "rb")


def _open(content: bytes, path: Path, max_pixels: int) -> Image.Image:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # else Pillow's own limit applies
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        kind = name_kind(content)
        what = f": it is {kind}" if kind else ""
        raise ImageError("not_an_image", f"{path}: not an image (of {', '.join(FORMATS)}){what}") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"{path}: too large to be decoded: {error}") from error
    except Exception as error:
        raise _damaged(path, error) from error
    if image.format == "PNG" and PNG_END not in content:
        # Pillow may not read the last bytes
        raise ImageError("truncated", f"{path}: damaged image: truncated")
    if image.width * image.height > max_pixels:
        raise ImageError(
            "too_large",
            f"{path}: {image.width}x{image.height} pixels; expected at most {max_pixels}: {SHRINK}",
        )
    if image.format in ("JPEG", "MPO"):
        _refuse_scans(content, image, path, max_pixels)
    return image


def _refuse_scans(content: bytes, image: Image.Image, path: Path, max_pixels: int) -> None:
    """Refuse a JPEG with so many scans that decoding would take minutes."""
    scans, most = count_scans(content), MAX_SCANS * max_pixels // (image.width * image.height)
    if scans > most:
        raise ImageError(
            "too_large",
            f"{path}: a JPEG of {scans} scans; expected at most {most} for {image.width}x{image.height} pixels: "
            "save it again",
        )


def count_scans(jpeg: bytes) -> int:
    """Return the number of scans of a JPEG, without those of thumbnails in its metadata."""
    scans, position = 0, 2
    # In compressed data between segments, 0xFF is followed by zero or a restart marker
    while (marker := _JPEG_MARKER.search(jpeg, position)) is not None and marker[1] != JPEG_END:
        scans += marker[1] == JPEG_SCAN
        position = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    return scans


def _scale_grey(grey: npt.NDArray[np.integer], bits: int, path: Path) -> tuple[UInt8Array, int]:
    """Return 16-bit grey as RGB of 8 bits, and its largest value."""
    largest, white = int(grey.max()), 2**bits - 1
    if largest > white:
        raise ImageError("unsupported", f"{path}: has value {largest}; expected at most {white} ({bits} bits)")
    scaled = ((grey.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2), largest


def _why_dark(largest: int, bits: int, *, is_color: bool) -> str | None:
    """Return reason and remedy for a 16-bit image that becomes dark; None if it does not."""
    needed = max(8, largest.bit_length() + largest.bit_length() % 2)  # cameras have 8, 10, 12 or 14
    if not largest or needed > DARK_BITS or needed >= bits:
        return None
    remedy = "convert it to 8 bits" if is_color else f"--bits {needed}, in training --set data.bits={needed}"
    kind = "colours" if is_color else "values"
    return (
        f"16-bit {kind} end at {largest} of {2**bits - 1}, so it becomes dark; if {needed} bits are used: {remedy}"
    )


def _to_rgb(image: Image.Image, path: Path, *, writable: bool) -> UInt8Array:
    if image.mode in ("I", "F"):
        raise ImageError(
            "unsupported",
            f"{path}: pixels of mode {image.mode} (32-bit) have no defined 8-bit mapping: convert it to "
            "8 bits, scaled as the training images are",
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    # Each conversion copies the whole image
    return (np.array if writable else np.asarray)(image if image.mode == "RGB" else image.convert("RGB"))


def _damaged(path: Path, error: Exception) -> ImageError:
    text = str(error).lower()
    truncated = isinstance(error, EOFError) or any(word in text for word in TRUNCATED_WORDS)
    return ImageError("truncated" if truncated else "damaged", f"{path}: damaged image: {error}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
