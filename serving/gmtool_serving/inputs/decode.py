"""The first stage: from an input to its pixels and the hash of its bytes, or to the reason why there are none."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gmtool.errors import GmtoolError, ImageError
from gmtool.files import sha256_of_file
from gmtool.images import MAX_PIXELS, UInt8Array, decode_image, max_file_bytes, read_regular_file


@dataclass(frozen=True)
class DecodeOptions:
    """How images are read."""

    exif: bool = True
    """Turn images as their EXIF orientation says."""
    max_pixels: int = MAX_PIXELS
    """Larger images fail before they are decoded."""
    bits: int = 16
    """Bits that the values of 16-bit grey images use."""


@dataclass(frozen=True)
class Decoded:
    """An image in memory."""

    pixels: UInt8Array
    """RGB, (H, W, 3)."""
    sha256: str
    """Hash of the file's bytes."""
    warning: str | None = None
    """What a person may want to know of how it was read."""


@dataclass(frozen=True)
class Failure:
    """Why an input has no mask."""

    code: str
    """One of those in docs/prediction.md."""
    message: str
    sha256: str | None = None
    """Hash of the file's bytes, where they could be read."""


def decode(
    path: Path, frame: int | None, options: DecodeOptions, content: bytes | None = None
) -> Decoded | Failure:
    """Read, hash and decode an image file, or a frame of a video; never raises for what is wrong with it.

    Args:
        path: The file.
        frame: Number of the frame in a video.
        options: How images are read.
        content: What is in the file, if it was read already.
    """
    sha256 = None
    try:
        if frame is not None:
            return _decode_frame(path, frame, options.max_pixels)
        if content is None:
            content = read_regular_file(path, max_bytes=max_file_bytes(options.max_pixels))
        sha256 = hashlib.sha256(content).hexdigest()
        image = decode_image(content, path, exif=options.exif, bits=options.bits, max_pixels=options.max_pixels)
    except MemoryError:
        return Failure("out_of_memory", f"{named(path, frame)}: not enough memory to decode it", sha256)
    except GmtoolError as error:
        return Failure(error.code, str(error), sha256)
    warning = f"{path}: {'; '.join(image.notes)}" if image.notes else None
    return Decoded(image.pixels, sha256, warning)


def named(path: Path, frame: int | None) -> str:
    """Return what an input is called in messages."""
    return str(path) if frame is None else f"{path} frame {frame}"


def sha256_of_input(path: Path, frame: int | None) -> str | None:
    """Return the hash of an input's bytes, those of the whole video for a frame; None if they cannot be read."""
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
