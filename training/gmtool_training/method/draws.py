"""Random numbers of a step, all drawn on the host before anything is computed.

What follows is a function of tensors alone, so that a card can repeat it as a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gmtool.config import MethodConfig
from gmtool_training.data.copying import copied
from gmtool_training.method.mixing import draw_lambda, random_others, random_partners
from gmtool_training.method.strong_view import change_colors, draw_boxes

Number = float | Tensor
"""A number, or a tensor without dimensions on the device, which a graph reads anew each time."""


@dataclass(frozen=True)
class StepDraws:
    """Random numbers of one step; None where the method does not need them."""

    lam: Number
    """Mixing coefficient, in [0, 0.5)."""
    partners: Tensor | None = None
    """(B,) index of the labeled partner of each unlabeled image, for random pairs."""
    boxes: Tensor | None = None
    """(B, H, W) bool: boxes of the strong view that show another image."""
    colored: Tensor | None = None
    """(B, 3, H, W) uint8: unlabeled images of which the strong view is made."""
    others: Tensor | None = None
    """(B,) index of another labeled image for each one, for random pairs."""


def draw_step(
    random: np.random.Generator, method: MethodConfig, *, labeled: int, unlabeled: Tensor, lam: float | None = None
) -> StepDraws:
    """Draw all random numbers of a step.

    Args:
        random: Source of all of them.
        method: Says what is needed.
        labeled: Number of labeled images.
        unlabeled: Unlabeled images, (B, 3, H, W) uint8 RGB.
        lam: Mixing coefficient to take instead of drawing one.
    """
    device, pairs = unlabeled.device, method.pairing == "random"
    lam = draw_lambda(random, bound=method.lambda_bound) if lam is None else lam
    partners, boxes, colored, others = None, None, None, None
    if pairs and method.pseudo != "direct":
        partners = copied(random_partners(len(unlabeled), labeled, random), device)
    if method.view == "strong":
        size = (unlabeled.shape[-2], unlabeled.shape[-1])
        drawn = draw_boxes(len(unlabeled), size, share=method.cutmix, random=random)
        boxes = copied(torch.from_numpy(drawn), device)
        colored = change_colors(unlabeled, random)
    if pairs and method.labeled_decoupling and labeled >= 2:
        others = copied(random_others(labeled, random), device)
    return StepDraws(lam, partners, boxes, colored, others)
