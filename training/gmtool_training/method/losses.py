"""Loss terms of GuidedMix-Net as pure functions of tensors (docs/method.md, section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class StepLosses:
    """Loss terms of one step: scalars on the device without gradient; L_dec and L_usup are 0 if not used."""

    cross_entropy: Tensor
    """L_ce (Eq. 1)."""
    classification: Tensor
    """L_cla, image classification."""
    labeled_decoupling: Tensor
    """L_dec (Eq. 12)."""
    unlabeled: Tensor
    """L_usup (Eq. 10), before its weight."""
    omega: float | Tensor
    """Weight of the unlabeled loss in this step."""

    @property
    def total(self) -> Tensor:
        """L = L_ce + L_cla + L_dec + omega L_usup."""
        return self.cross_entropy + self.classification + self.labeled_decoupling + self.omega * self.unlabeled


def mean_losses(parts: Sequence[StepLosses]) -> StepLosses:
    """Return the mean of each term over the parts of one step."""
    if len(parts) == 1:
        return parts[0]
    return StepLosses(
        torch.stack([part.cross_entropy for part in parts]).mean(),
        torch.stack([part.classification for part in parts]).mean(),
        torch.stack([part.labeled_decoupling for part in parts]).mean(),
        torch.stack([part.unlabeled for part in parts]).mean(),
        parts[0].omega,
    )


def cross_entropy(
    logits: Tensor,
    masks: Tensor,
    *,
    ignore_index: int,
    scored_pixels: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy over the pixels that are not ignored (Eq. 1); 0 if all are ignored.

    Args:
        logits: (B, C, H, W).
        masks: (B, H, W) class indices, any integer type.
        ignore_index: Label of ignored pixels.
        scored_pixels: Divisor of the sum over pixels; default: number of pixels that are not ignored.
        class_weights: (C,) factors of each pixel's cross-entropy by its class.
    """
    target = masks.long()
    total = F.cross_entropy(logits.float(), target, class_weights, ignore_index=ignore_index, reduction="sum")
    count = (target != ignore_index).sum().clamp(min=1) if scored_pixels is None else scored_pixels
    return total / count


def image_classification(image_logits: Tensor, masks: Tensor, *, foreground: tuple[int, ...]) -> Tensor:
    """Return L_cla: binary cross-entropy of the presence of each class in the crop, mean over images and classes.

    Args:
        image_logits: (B, F) logits of the foreground classes.
        masks: (B, H, W) uint8 labels.
        foreground: The F class indices.
    """
    batch = masks.shape[0]
    occurs = torch.zeros(batch, 256, device=masks.device).scatter_(1, masks.flatten(1).long(), 1.0)
    return F.binary_cross_entropy_with_logits(image_logits.float(), _columns(occurs, foreground))


def _columns(values: Tensor, indices: Sequence[int]) -> Tensor:
    """Return columns of (B, N) by ascending index, as slices: copying a list of indices waits for a card."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] += 1
        else:
            ranges.append([index, index + 1])
    parts = [values[:, start:end] for start, end in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def pseudo_cross_entropy(logits: Tensor, pseudo: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weighted cross-entropy with the likeliest class of a pseudo mask, mean over all pixels.

    Args:
        logits: (B, C, H, W).
        pseudo: Pseudo mask (B, C, H, W), constant.
        weights: Weight of each pixel (B, H, W); None: all 1.
    """
    # On a CPU, max is four times as fast as argmax
    each = F.cross_entropy(logits.float(), pseudo.max(dim=1).indices, reduction="none")
    return each.mean() if weights is None else (weights * each).mean()


def squared_difference(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the squared difference of two masks, mean over batch, classes and pixels (Eq. 10, 12).

    Args:
        prediction: Probabilities (B, C, H, W).
        target: Pseudo mask (B, C, H, W).
        weights: Weight of each pixel (B, H, W); None: all 1. The mean is over all pixels.
    """
    if weights is None:
        return F.mse_loss(prediction, target)
    return (weights[:, None] * (prediction - target).square()).mean()


def omega_at(iteration: int, *, iterations: int, warmup: int, ramp_fraction: float, omega_max: float) -> float:
    """Return the weight of the unlabeled loss: 0 in warm-up, then omega_max exp(-5 (1 - t)^2), t in [0, 1].

    Args:
        iteration: Index of the step, from 0.
        iterations: Steps in the run.
        warmup: Steps of warm-up, without unlabeled images.
        ramp_fraction: Share of the steps after warm-up in which t rises from 0 to 1.
        omega_max: Final weight.
    """
    if iteration < warmup:
        return 0.0
    ramp = ramp_fraction * (iterations - warmup)
    t = min(1.0, (iteration - warmup) / ramp) if ramp > 0 else 1.0
    return omega_max * math.exp(-5 * (1 - t) ** 2)
