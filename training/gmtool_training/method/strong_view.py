"""Strong view of unlabeled images: colour jitter, blur, and boxes of other ones (as in UniMatch).

Random numbers come from a passed generator; torchvision computes on the device of the images.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V

JITTER_PROBABILITY, GRAY_PROBABILITY, BLUR_PROBABILITY = 0.8, 0.2, 0.5
JITTER, HUE = 0.5, 0.25
"""Largest relative change of brightness, contrast and saturation, and of hue in turns."""
BLUR_SIGMA_PX = (0.1, 2.0)
BOX_AREA, BOX_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)
"""Smallest and largest area of a box over that of the image, and height over width."""


def change_colors(images: Tensor, random: np.random.Generator) -> Tensor:
    """Return images (B, 3, H, W) uint8 RGB with colour jitter and, with probability 0.5, blur.

    Args:
        images: (B, 3, H, W) uint8 RGB.
        random: Source of all random numbers.
    """
    return torch.stack([_change_one(image, random) for image in images])


def draw_boxes(
    count: int, size: tuple[int, int], *, share: float, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Return random boxes as masks, (count, H, W) bool: one box or none an image.

    Args:
        count: Number of images.
        size: (height, width) in pixels.
        share: Probability of a box, in [0, 1].
        random: Source of all random numbers.
    """
    height, width = size
    boxes = np.zeros((count, height, width), dtype=np.bool_)
    for box in boxes:
        if random.random() >= share:
            continue
        area, aspect = random.uniform(*BOX_AREA) * height * width, random.uniform(*BOX_ASPECT)
        box_height = min(height, max(1, round(math.sqrt(area * aspect))))
        box_width = min(width, max(1, round(math.sqrt(area / aspect))))
        top = int(random.integers(0, height - box_height + 1))
        left = int(random.integers(0, width - box_width + 1))
        box[top : top + box_height, left : left + box_width] = True
    return boxes


def paste(values: Tensor, boxes: Tensor) -> Tensor:
    """Return values (B, ..., H, W) with the next row's values in each box (B, H, W), cyclically."""
    inside = boxes.view(len(boxes), *[1] * (values.dim() - 3), *boxes.shape[1:])
    return torch.where(inside, values.roll(-1, dims=0), values)


def _change_one(image: Tensor, random: np.random.Generator) -> Tensor:
    if random.random() < JITTER_PROBABILITY:
        brightness, contrast, saturation = random.uniform(1 - JITTER, 1 + JITTER, size=3).tolist()
        hue = float(random.uniform(-HUE, HUE))
        for change in random.permutation(4):
            match int(change):
                case 0:
                    image = V.adjust_brightness(image, brightness)
                case 1:
                    image = V.adjust_contrast(image, contrast)
                case 2:
                    image = V.adjust_saturation(image, saturation)
                case _:
                    image = V.adjust_hue(image, hue)
    if random.random() < GRAY_PROBABILITY:
        image = V.rgb_to_grayscale(image, num_output_channels=3)
    if random.random() < BLUR_PROBABILITY:
        sigma = float(random.uniform(*BLUR_SIGMA_PX))
        image = V.gaussian_blur(image, kernel_size=2 * math.ceil(3 * sigma) + 1, sigma=sigma)
    return image
