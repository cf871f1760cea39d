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
FOLDS = 3
"""Parts of the labeled images, each kept out of a fit once; the last fit takes all."""
THRESHOLDS = (0.6, 0.7, 0.8, 0.9, 0.95)
LEAST_RIGHT = 0.9
"""Share of the pseudo labels above a threshold that must be right for it to be taken."""


@dataclass(frozen=True)
class Reliability:
    """How often a pseudo label is right, measured on labeled images that the fit has not seen."""

    thresholds: tuple[float, ...]
    kept: tuple[float, ...]
    """Share of the pixels with at least this confidence."""
    right: tuple[float, ...]
    """Share of those whose pseudo label is the label; NaN where none is kept."""


def labeled_rows(bank: Bank, num_classes: int) -> Rows:
    """Return the labeled pixels of a bank, each counting alike: they were drawn by their classes' weights."""
    targets = torch.zeros(len(bank.labels), num_classes)
    known = (bank.labels >= 0) & (bank.labels < num_classes)
    targets[known.nonzero()[:, 0], bank.labels[known]] = 1.0
    return Rows(bank.features, targets)


@dataclass(frozen=True)
class PseudoOptions:
    """How pseudo labels count."""

    num_classes: int
    threshold: float
    """Pixels whose largest probability is below do not count."""
    balance: float
    """A pixel weighs (share of its class among those that count) ** -balance."""
    weight: float
    """Share of the unlabeled pixels in the whole, in (0, 1)."""


def pseudo_rows(bank: Bank, probabilities: Tensor, options: PseudoOptions) -> Rows:
    """Return unlabeled pixels with their likeliest classes as targets, where a teacher is sure.

    Args:
        bank: Unlabeled pixels.
        probabilities: (N, K) of a teacher.
        options: What counts, and how much.
    """
    confidence, classes = probabilities.max(dim=1)
    keep = (confidence >= options.threshold).float()
    weights = pseudo_class_weights(probabilities, options)
    targets = torch.zeros_like(probabilities)
    targets[torch.arange(len(classes)), classes] = keep * weights[classes]
    return Rows(bank.features, targets)


def pseudo_class_weights(probabilities: Tensor, options: PseudoOptions) -> Tensor:
    """Return the weight of a pixel that counts, by its likeliest class: (K,); 0 of a class without such pixels."""
    confidence, classes = probabilities.max(dim=1)
    keep = (confidence >= options.threshold).float()
    counts = torch.zeros(probabilities.shape[1]).index_add_(0, classes, keep)
    share = counts / counts.sum().clamp(min=1)
    return torch.where(share > 0, share.clamp(min=1e-5) ** -options.balance, torch.zeros(()))


def self_train(
    fit: Fit, labeled: Bank, unlabeled: Bank, options: PseudoOptions, *, rounds: int, start: Head | None = None
) -> list[Head]:
    """Return the head of labels alone, then that of each round.

    The teacher of a round is the head before it, or another run, whose probabilities the unlabeled pixels have.

    Args:
        fit: Fits a head.
        labeled: Labeled pixels.
        unlabeled: Unlabeled ones.
        options: How pseudo labels count.
        rounds: Rounds of self-training.
        start: The head of labels alone, if it was fitted before.
    """
    rows = labeled_rows(labeled, options.num_classes)
    heads = [start or fit([rows], None)]
    for _ in range(rounds):
        found = unlabeled.teacher if unlabeled.teacher is not None else heads[-1].probabilities(unlabeled.features)
        pseudo = pseudo_rows(unlabeled, found, options)
        total = float(pseudo.targets.sum()) * len(pseudo.features)
        if total == 0:
            break
        factor = options.weight / (1 - options.weight) * float(rows.targets.sum()) * len(rows.features) / total
        heads.append(fit([rows, Rows(pseudo.features, pseudo.targets * factor)], heads[-1]))
    return heads


def reliability(confidence: Tensor, right: Tensor) -> Reliability:
    """Return how often pseudo labels are right.

    Args:
        confidence: (N,) largest probabilities for pixels that the fit has not seen.
        right: (N,) bool, whether the likeliest class is the label.
    """
    kept = [confidence >= threshold for threshold in THRESHOLDS]
    return Reliability(
        THRESHOLDS,
        tuple(float(each.float().mean()) for each in kept),
        tuple(float(right[each].float().mean()) for each in kept),
    )


def choose_threshold(measured: Reliability, *, least: float = LEAST_RIGHT) -> float:
    """Return the lowest threshold above which at least the share `least` is right; else the highest.

    A strict filter where confident means right, else a floor that adapts (CW-BASS v2, arXiv 2608.12773).
    """
    for threshold, right in zip(measured.thresholds, measured.right, strict=True):
        if right >= least:
            return threshold
    return measured.thresholds[-1]


def folds_of(bank: Bank, count: int, random: np.random.Generator) -> list[Tensor]:
    """Return the pixels that are kept out of each of `count` fits, (N,) bool: a part of the images, each once."""
    order = random.permutation(torch.unique(bank.images).numpy())
    return [torch.isin(bank.images, torch.from_numpy(order[fold::count].copy())) for fold in range(count)]


def pixel_confusion(head: Head, bank: Bank, num_classes: int) -> Tensor:
    """Return the confusion matrix of the labeled pixels of a bank, in the first view: (K, K), rows are labels."""
    predicted = head.probabilities(bank.features[:1]).argmax(dim=1)
    known = (bank.labels >= 0) & (bank.labels < num_classes)
    pairs = bank.labels[known] * num_classes + predicted[known]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def mean_iou(confusion: Tensor) -> float:
    """Return the mean IoU over the classes that occur, in [0, 1]."""
    matrix = confusion.double()
    union = matrix.sum(dim=0) + matrix.sum(dim=1) - matrix.diagonal()
    occurs = matrix.sum(dim=1) > 0
    return float((matrix.diagonal()[occurs] / union[occurs]).mean())
