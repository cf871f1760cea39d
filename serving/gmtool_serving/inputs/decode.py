"""First pipeline stage: decode an input to pixels and a hash, or to a failure."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from gmtool.errors import GmtoolError, ImageError
from gmtool.files import sha256_of_file
from gmtool.images import MAX_PIXELS, UInt8Array, decode_image, max_file_bytes, read_regular_file


@dataclass(frozen=True)
class DecodeOptions:
    """Options of image decoding."""

    exif: bool = True
    """Apply the EXIF orientation."""
    max_pixels: int = MAX_PIXELS
    """Largest number of pixels; larger images fail before they are decoded."""
    bits: int = 16
    """Bits in use of 16-bit grey values, 8 to 16."""


class EncodedImage(NamedTuple):
    """Image file or video frame that is to be decoded."""

    path: Path
    """Image or video file; only its name in messages if there is `content`."""
    frame: int | None = None
    """Frame number in the video; None for an image."""
    content: bytes | None = None
    """Bytes of the image file; None to read `path`."""


@dataclass(frozen=True)
class Decoded:
    """Decoded image with the hash of its file."""

    pixels: UInt8Array
    """RGB, (H, W, 3) uint8."""
    sha256: str
    """Hash of the file's bytes."""
    warning: str | None = None
    """Remark on how the image was read, for the user."""


@dataclass(frozen=True)
class Failure:
    """Error code and message of an input without a mask."""

    code: str
    """Error code; docs/prediction.md lists them."""
    message: str
    sha256: str | None = None
    """Hash of the file's bytes; None if they could not be read."""


def decode(
    path: Path,
    frame: int | None,
    options: DecodeOptions,
    content: bytes | None = None,
    *,
    writable: bool = True,
    room: UInt8Array | None = None,
) -> Decoded | Failure:
    """Read, hash and decode an image file or a video frame; errors of the file are returned, not raised.

    Args:
        path: Image or video file.
        frame: Frame number in the video; None for an image.
        options: Decoding options.
        content: Bytes of the file, if already read.
        writable: Return pixels that may be written to, which can cost a copy.
        room: (N,) memory where the pixels of an ordinary JPEG are put, if they fit.
    """
    sha256 = None
    try:
        if frame is not None:
            return _decode_frame(path, frame, options.max_pixels)
        if content is None:
            content = read_regular_file(path, max_bytes=max_file_bytes(options.max_pixels))
        sha256 = hashlib.sha256(content).hexdigest()
        image = decode_image(content, path, **vars(options), writable=writable, room=room)
    except MemoryError:
        return Failure("out_of_memory", f"{named(path, frame)}: not enough memory to decode it", sha256)
    except GmtoolError as error:
        return Failure(error.code, str(error), sha256)
    warning = f"{path}: {'; '.join(image.notes)}" if image.notes else None
    return Decoded(image.pixels, sha256, warning)


def named(path: Path, frame: int | None) -> str:
    """Return the name of an input in messages."""
    return str(path) if frame is None else f"{path} frame {frame}"


def sha256_of_input(path: Path, frame: int | None) -> str | None:
    """Return the SHA-256 of an input file (of the whole video for a frame); None if it cannot be read."""
    try:
        if frame is not None:
            return _sha256_of_video(path)
        return hashlib.sha256(read_regular_file(path)).hexdigest()
    except (ImageError, OSError):
        return None


def _decode_frame(path: Path, frame: int, max_pixels: int) -> Decoded:
    from gmtool_serving.inputs.video import read_frame

    return Decoded(read_frame(path, frame, max_pixels=max_pixels), _sha256_of_video(path))


def _sha256_of_video(path: Path) -> str:
    status = path.stat()
    return _sha256_of_version(os.fspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256_of_version(path: str, _size: int, _mtime_ns: int) -> str:
    """Hash a video once, not once a frame."""
    return sha256_of_file(Path(path))
