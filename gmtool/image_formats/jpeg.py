"""Fast way for the ordinary JPEG: decoded in one step, where Pillow decodes, packs and copies."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

try:
    import simplejpeg
except ImportError:  # no wheel for the machine: Pillow decodes everything
    simplejpeg = None

MODES = ("RGB", "L")
"""Modes of Pillow whose RGB values simplejpeg gives bit for bit; CMYK has several meanings."""
ORIENTATION = 0x0112
"""EXIF tag: how an image is to be turned."""


def decode_plain_jpeg(
    content: bytes, opened: Image.Image, *, exif: bool, room: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of a JPEG that need not be turned; the same values as Pillow's.

    Both use libjpeg-turbo. simplejpeg writes RGB at once, in two thirds to five sixths of Pillow's time.

    Args:
        content: Content of the file.
        opened: The file as opened by Pillow, which has read its header.
        exif: Whether its EXIF orientation matters.
        room: (N,) memory for the pixels; they are put into new memory where it is too small.

    Returns:
        RGB, (H, W, 3) uint8; None if it is another kind of file, or if anything is wrong with it, which Pillow may
        read all the same or explain; None where simplejpeg is not installed.
    """
    if simplejpeg is None or opened.format not in ("JPEG", "MPO") or opened.mode not in MODES:
        return None
    shape = (opened.height, opened.width, 3)
    size = math.prod(shape)
    try:
        if exif and opened.getexif().get(ORIENTATION) in range(2, 9):
            return None
        if simplejpeg.decode_jpeg_header(content)[:2] != shape[:2]:
            return None
        target = np.empty(size, dtype=np.uint8) if room is None or len(room) < size else room[:size]
        pixels = target.reshape(shape)
        simplejpeg.decode_jpeg(content, "RGB", buffer=pixels)
    except Exception:  # of damaged metadata Pillow raises a dozen types
        return None
    return pixels
