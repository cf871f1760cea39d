"""Augmentation of METHOD 3 as one affine warp: only the pixels of the crop are ever computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gmtool.images import UInt8Array

MEAN_COLOR = (124, 116, 104)
"""ImageNet's mean, so that what lies outside the image is zero after normalisation."""


@dataclass(frozen=True)
class CropWindow:
    """Where a square crop comes from. Draw it with `draw_window`."""

    size_px: int
    scale: float
    """Size of the image in the crop over its own size."""
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
        random: Source of every draw.
        image_size: (height, width) of the image in pixels.
        size_px: Height and width of the crop.
        scale: Smallest and largest scale.
        rotation_deg: Largest rotation to either side.
        flip: Whether half of the crops are mirrored.

    Returns:
        A window that lies inside the image along each axis on which the scaled image is large enough, and
        is centred along the others.
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
    """Return the crop of an image (H, W, 3), bilinear; outside of the image it has the mean colour."""
    return _warp(Image.fromarray(image), window, Image.Resampling.BILINEAR, MEAN_COLOR)


def crop_mask(mask: UInt8Array, window: CropWindow, *, ignore_index: int) -> UInt8Array:
    """Return the crop of a mask (H, W), nearest; outside of the image it is ignored."""
    return _warp(Image.fromarray(mask), window, Image.Resampling.NEAREST, ignore_index)


def _warp(
    image: Image.Image, window: CropWindow, resample: Image.Resampling, fill: int | tuple[int, ...]
) -> UInt8Array:
    angle = math.radians(window.rotation_deg)
    cosine, sine = math.cos(angle) / window.scale, math.sin(angle) / window.scale
    mirror = -1 if window.mirrored else 1
    middle = window.size_px / 2
    (center_x, center_y) = window.center
    # Position in the image of each position in the crop: rotated and scaled about the two centres
    matrix = (
        mirror * cosine,
        -mirror * sine,
        center_x - mirror * (cosine - sine) * middle,
        sine,
        cosine,
        center_y - (sine + cosine) * middle,
    )
    size = (window.size_px, window.size_px)
    warped = image.transform(size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill)
    return np.array(warped)
