"""Self-training of the probe: pseudo labels, held against labels that were kept out of the fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gmtool_training.probe.bank import Bank
from gmtool_training.probe.head import Head, Rows

Fit = Callable[[Sequence[Rows], Head | None], Head]
"""From training rows, and a head to start from, to a fitted head."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Reliability:
    """How often a pseudo label is right, measured on labeled images that the fit has not seen."""

    thresholds: tuple[float, ...]
    kept: tuple[float, ...]
    """Share of the pixels with at least this confidence."""
    right: tuple[float, ...]
    """Share of those whose pseudo label is the label; NaN where none is kept."""


@dataclass(frozen=True)
class Verdict:
    """Whether unlabeled images help, judged on the labeled images that were kept out."""

    labels_alone: float
    """Mean IoU over classes of the sampled pixels, in [0, 1]."""
    self_trained: float
    """The same after one round of self-training."""
    reliability: Reliability

    @property
    def helps(self) -> bool:
        """Return whether self-training is worth it: it does not lose on the images that were kept out."""
        return self.self_trained >= self.labels_alone


def labeled_rows(bank: Bank, num_classes: int) -> Rows:
    """Return the labeled pixels of a bank, each counting alike: they were drawn by their classes' weights."""
    targets = torch.zeros(len(bank.labels), num_classes)
    known = (bank.labels >= 0) & (bank.labels < num_classes)
    targets[known.nonzero()[:, 0], bank.labels[known]] = 1.0
    return Rows(bank.features, targets)


def pseudo_rows(bank: Bank, probabilities: Tensor, *, threshold: float, balance: float) -> Rows:
    """Return unlabeled pixels with their likeliest classes as targets, where a teacher is sure.

    Args:
        bank: Unlabeled pixels.
        probabilities: (N, K) of a teacher.
        threshold: Pixels whose largest probability is below do not count.
        balance: A pixel weighs (share of its class among those that count) ** -balance.
    """
    confidence, classes = probabilities.max(dim=1)
    keep = (confidence >= threshold).float()
    counts = torch.zeros(probabilities.shape[1]).index_add_(0, classes, keep)
    share = counts / counts.sum().clamp(min=1)
    weights = torch.where(share > 0, share.clamp(min=1e-5) ** -balance, torch.zeros(()))
    targets = torch.zeros_like(probabilities)
    targets[torch.arange(len(classes)), classes] = keep * weights[classes]
    return Rows(bank.features, targets)


def self_train(
    fit: Fit,
    labeled: Bank,
    unlabeled: Bank,
    *,
    num_classes: int,
    rounds: int,
    threshold: float,
    balance: float,
    weight: float,
    start: Head | None = None,
) -> list[Head]:
    """Return the head of labels alone, then that of each round; the teacher of a round is the head before it.

    Args:
        fit: Fits a head.
        labeled: Labeled pixels.
        unlabeled: Unlabeled ones.
        num_classes: Number of classes.
        rounds: Rounds of self-training.
        threshold: See `pseudo_rows`.
        balance: See `pseudo_rows`.
        weight: Share of the unlabeled pixels in the whole, in (0, 1).
        start: The head of labels alone, if it was fitted before.
    """
    rows = labeled_rows(labeled, num_classes)
    heads = [start or fit([rows], None)]
    for _ in range(rounds):
        pseudo = pseudo_rows(
            unlabeled, heads[-1].probabilities(unlabeled.features), threshold=threshold, balance=balance
        )
        total = float(pseudo.targets.sum()) * len(pseudo.features)
        if total == 0:
            break
        factor = weight / (1 - weight) * float(rows.targets.sum()) * len(rows.features) / total
        heads.append(fit([rows, Rows(pseudo.features, pseudo.targets * factor)], heads[-1]))
    return heads


def reliability(head: Head, held_out: Bank) -> Reliability:
    """Return how often the pseudo labels of pixels that the fit has not seen are right."""
    confidence, classes = head.probabilities(held_out.features).max(dim=1)
    right = classes == held_out.labels
    kept = [confidence >= threshold for threshold in THRESHOLDS]
    return Reliability(
        THRESHOLDS,
        tuple(float(each.float().mean()) for each in kept),
        tuple(float(right[each].float().mean()) for each in kept),
    )


def choose_threshold(measured: Reliability, *, least: float) -> float:
    """Return the lowest threshold whose pseudo labels are right at least as often as `least`; else the highest."""
    for threshold, right in zip(measured.thresholds, measured.right, strict=True):
        if right >= least:
            return threshold
    return measured.thresholds[-1]


def split_images(bank: Bank, *, share: float, random: np.random.Generator) -> tuple[Bank, Bank]:
    """Return two parts of a bank, whole images each: the rest, and `share` of the images, kept out."""
    images = torch.unique(bank.images)
    count = max(1, round(share * len(images)))
    held = images[torch.from_numpy(random.permutation(len(images))[:count].copy())]
    is_held = torch.isin(bank.images, held)
    return bank.rows(~is_held), bank.rows(is_held)


def pixel_miou(head: Head, bank: Bank, num_classes: int) -> float:
    """Return the mean IoU over the classes that occur among the pixels of a bank, in the first view."""
    predicted = head.probabilities(bank.features[:1]).argmax(dim=1)
    known = (bank.labels >= 0) & (bank.labels < num_classes)
    pairs = bank.labels[known] * num_classes + predicted[known]
    matrix = torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).double()
    union = matrix.sum(dim=0) + matrix.sum(dim=1) - matrix.diagonal()
    occurs = matrix.sum(dim=1) > 0
    return float((matrix.diagonal()[occurs] / union[occurs]).mean())
