"""Small vectors of an image: thumbnail, and descriptor of colours and gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from gmtool.images import UInt8Array

Float32Array = npt.NDArray[np.float32]

THUMBNAIL_PX = 8
"""Side of the thumbnails that near-duplicates are found by."""
SIDE_PX = 32
"""Side of the picture that the descriptor is taken from."""
CELLS = 4
"""The descriptor has colours of CELLS x CELLS fields, and gradients of half as many in each direction."""
DIRECTIONS = 8
APPEARANCE_SIZE = 3 * CELLS**2 + DIRECTIONS * (CELLS // 2) ** 2
"""Length of the descriptor: 48 colours and 32 gradients."""


def appearance_of(pixels: UInt8Array) -> tuple[UInt8Array, Float32Array]:
    """Return thumbnail and descriptor of an image.

    The descriptor holds the mean colour of 4x4 fields (less mid-grey), and a histogram of gradient directions,
    weighted by their strength, of 2x2 fields. Each half has length sqrt(1/2), the whole at most 1.

    Args:
        pixels: RGB, (H, W, 3), uint8.

    Returns:
        Thumbnail, (8 * 8 * 3,) uint8, and descriptor, (APPEARANCE_SIZE,) float32.
    """
    # `reduce` averages whole blocks first, which is ten times faster for large images
    height, width = pixels.shape[:2]
    factor = max(1, width // (2 * SIDE_PX)), max(1, height // (2 * SIDE_PX))
    reduced = Image.fromarray(pixels).reduce(factor)
    picture = reduced.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    thumbnail = np.asarray(picture.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)).ravel()
    # Colours
    cells = np.asarray(picture.resize((CELLS, CELLS), Image.Resampling.BOX), dtype=np.float32).ravel()
    colors = _unit(cells / np.float32(255) - np.float32(0.5))
    # Gradients
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    down, right = np.gradient(grey)
    direction = ((np.arctan2(down, right) + np.pi) * (DIRECTIONS / (2 * np.pi))).astype(int) % DIRECTIONS
    field = np.arange(SIDE_PX) // (2 * SIDE_PX // CELLS)
    bins = (field[:, None] * (CELLS // 2) + field) * DIRECTIONS + direction
    histogram = np.bincount(
        bins.ravel(), weights=np.hypot(down, right).ravel(), minlength=DIRECTIONS * (CELLS // 2) ** 2
    )
    gradients = _unit(histogram.astype(np.float32))
    return thumbnail, np.concatenate([colors, gradients]) * np.float32(np.sqrt(0.5))


def _unit(vector: Float32Array) -> Float32Array:
    """Return the vector with length 1; zeros stay zeros."""
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector
