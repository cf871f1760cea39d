"""Gain in mean IoU on labeled images kept out of the fits, and its standard error over the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gmtool_training.probe.bank import Bank
from gmtool_training.probe.head import Head
from gmtool_training.probe.self_training import mean_iou, pixel_confusion

GROUPS = 50
"""Groups of images that the standard error is computed from, at most; with fewer images, each is a group."""


@dataclass(frozen=True)
class Gain:
    """Difference of two mean IoU."""

    points: float
    """The second minus the first, in [-1, 1]."""
    error: float
    """Its standard error."""

    def __str__(self) -> str:
        """Return points and standard error, in per cent."""
        return f"{100 * self.points:+.1f} ± {100 * self.error:.1f}"

    @property
    def ratio(self) -> float:
        """Return how many standard errors it is above zero; 0 for no difference at all."""
        if self.points == 0:
            return 0.0
        return self.points / self.error if self.error else math.copysign(math.inf, self.points)


def confusions_kept_out(heads: Sequence[Head], labeled: Bank, folds: Sequence[Tensor], num_classes: int) -> Tensor:
    """Return a confusion matrix of each group of images, (groups, K, K), rows are labels.

    Args:
        heads: One a fold, which has not seen the images of that fold.
        labeled: Labeled pixels.
        folds: (N,) bool each: the pixels of a fold; each image is in as many of them as any other.
        num_classes: K.
    """
    first = replace(labeled, features=labeled.features[:1])
    groups = first.images % GROUPS
    matrices = [
        sum(
            (
                pixel_confusion(head, first.rows(kept_out & (groups == group)), num_classes).double()
                for head, kept_out in zip(heads, folds, strict=True)
            ),
            torch.zeros(num_classes, num_classes, dtype=torch.float64),
        )
        for group in torch.unique(groups).tolist()
    ]
    return torch.stack(matrices)


def gain_of(before: Tensor, after: Tensor) -> Gain:
    """Return the gain in pooled mean IoU with its jackknife standard error: each group of images left out once.

    Args:
        before: (groups, K, K) confusion matrices.
        after: Those of the same groups, of other heads.
    """
    whole = [each.sum(dim=0) for each in (before, after)]
    points = mean_iou(whole[1]) - mean_iou(whole[0])
    without = torch.tensor(
        [
            mean_iou(whole[1] - second) - mean_iou(whole[0] - first)
            for first, second in zip(before, after, strict=True)
        ],
        dtype=torch.float64,
    )
    count = len(without)
    return Gain(points, float((without.var(correction=0) * (count - 1)).sqrt()))
