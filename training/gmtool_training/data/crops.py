"""Augmentation as one affine warp of the crop's pixels (docs/method.md, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gmtool.images import MEAN_COLOR, UInt8Array

cv2.setNumThreads(0)  # the loader's processes are parallel already; a thread pool does not survive their fork


@dataclass(frozen=True)
class CropWindow:
    """Position of a square crop in an image, drawn by `draw_window`."""

    size_px: int
    """Height and width of the crop."""
    scale: float
    """Scale of the image in the crop over its own."""
    center: tuple[float, float]
    """Centre of the crop (x, y) in pixels of the image."""
    rotation_deg: float
    mirrored: bool


def draw_window(
    random: np.random.Generator,
    image_size: tuple[int, int],
    *,
    size_px: int,
    scale: tuple[float, float],
    rotation_deg: float,
    flip: bool,
) -> CropWindow:
    """Draw a random crop: scale, position, rotation, mirroring.

    Args:
        random: Source of all random numbers.
        image_size: (height, width) of the image in pixels.
        size_px: Height and width of the crop.
        scale: Smallest and largest scale factor.
        rotation_deg: Largest rotation to either side, in degrees.
        flip: Flip half of the crops horizontally.

    Returns:
        A window inside the image along each axis in which the scaled image is large enough, centred along the
        others.
    """
    factor = random.uniform(*scale)
    reach = size_px / 2 / factor
    center_y, center_x = (
        random.uniform(reach, length - reach) if length > 2 * reach else length / 2 for length in image_size
    )
    return CropWindow(
        size_px=size_px,
        scale=factor,
        center=(center_x, center_y),
        rotation_deg=random.uniform(-rotation_deg, rotation_deg),
        mirrored=bool(flip and random.random() < 0.5),
    )


def crop_image(image: UInt8Array, window: CropWindow) -> UInt8Array:
    """Return the crop of an image (H, W, 3) uint8, bilinear; the mean colour outside of the image.

    The crop is stored channel by channel, like the input of the network.
    """
    part, matrix = _part_and_matrix(image, window)
    # Four channels are warped and separated twice as fast as three, into the same values
    warped = _warp(cv2.cvtColor(part, cv2.COLOR_RGB2RGBA), matrix, window.size_px, cv2.INTER_LINEAR, MEAN_COLOR)
    channels = np.empty((4, window.size_px, window.size_px), dtype=np.uint8)
    cv2.split(warped, list(channels))
    return channels[:3].transpose(1, 2, 0)


def crop_mask(mask: UInt8Array, window: CropWindow, *, ignore_index: int) -> UInt8Array:
    """Return the crop of a mask (H, W) uint8, nearest neighbour; `ignore_index` outside of the image."""
    part, matrix = _part_and_matrix(mask, window)
    return _warp(part, matrix, window.size_px, cv2.INTER_NEAREST, (ignore_index,))


def crop_inside(size: tuple[int, int], window: CropWindow) -> npt.NDArray[np.bool_]:
    """Return the pixels of a crop inside of an image of `size` (height, width): (H, W) bool."""
    return crop_mask(np.ones(size, dtype=np.uint8), window, ignore_index=0) > 0


def _part_and_matrix(image: UInt8Array, window: CropWindow) -> tuple[UInt8Array, npt.NDArray[np.float64]]:
    """Return the part of an image that a crop needs, and the matrix (2, 3) from crop to part coordinates."""
    angle = math.radians(window.rotation_deg)
    cosine, sine = math.cos(angle) / window.scale, math.sin(angle) / window.scale
    # Only this part of the image is read; 2: neighbours of bilinear sampling
    reach = window.size_px / 2 * (abs(cosine) + abs(sine)) + 2
    (height, width), (center_x, center_y) = image.shape[:2], window.center
    left, above = max(0, math.floor(center_x - reach)), max(0, math.floor(center_y - reach))
    right, below = min(width, math.ceil(center_x + reach)), min(height, math.ceil(center_y + reach))
    # Rotate and scale about the centres
    mirror = -1 if window.mirrored else 1
    turn = np.array([[mirror * cosine, -mirror * sine], [sine, cosine]])
    # OpenCV coordinates start at the middle of a pixel, those of a window at its corner
    middle = (window.size_px - 1) / 2
    offset = np.array([center_x - left - 0.5, center_y - above - 0.5]) - turn @ [middle, middle]
    return image[above:below, left:right], np.column_stack([turn, offset])


def _warp(
    image: npt.NDArray[Any],
    matrix: npt.NDArray[np.float64],
    size_px: int,
    interpolation: int,
    fill: tuple[int, ...],
) -> UInt8Array:
    warped = cv2.warpAffine(
        image,
        matrix,
        (size_px, size_px),
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )
    return np.asarray(warped, dtype=np.uint8)
