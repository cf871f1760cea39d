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
PARTS = 2
"""Parts of the unlabeled images that label each other."""


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
    balance: float
    """A pixel weighs (share of its class among those that count) ** -balance."""
    weight: float
    """Share of the unlabeled pixels in the whole, in (0, 1)."""


def shares_of_rounds(rounds: int) -> tuple[float, ...]:
    """Return which share of the pixels of each predicted class counts in each round: the surest ones.

    The confidence that is enough differs from class to class. One threshold for all keeps the easy ones: the
    others lose their pseudo labels, then their pixels, round by round. Within a class, the surest pixels are the
    likeliest to be right (class-balanced self-training, Zou et al., ECCV 2018).
    """
    return tuple(number / (rounds + 1) for number in range(1, rounds + 1))


@dataclass(frozen=True)
class PseudoWeights:
    """What the pixels of each predicted class count."""

    thresholds: Tensor
    """(K,): pixels of the class that are less confident do not count."""
    weights: Tensor
    """(K,): weight of one that does; 0 of a class that is never predicted."""

    @classmethod
    def of(cls, probabilities: Tensor, options: PseudoOptions, *, share: float) -> PseudoWeights:
        """Return those of a teacher's (N, K) probabilities, where `share` of each predicted class counts."""
        confidence, classes = probabilities.max(dim=1)
        thresholds = class_thresholds(confidence, classes, share, num_classes=options.num_classes)
        keep = (confidence >= thresholds[classes]).float()
        counts = torch.zeros(len(thresholds)).index_add_(0, classes, keep)
        part = counts / counts.sum().clamp(min=1)
        weights = torch.where(part > 0, part.clamp(min=1e-5) ** -options.balance, torch.zeros(()))
        return cls(thresholds, weights)

    def __call__(self, confidence: Tensor, classes: Tensor) -> Tensor:
        """Return the weight of each pixel; 0 for one that does not count. All tensors are of one shape."""
        return self.weights[classes] * (confidence >= self.thresholds[classes])


def class_thresholds(confidence: Tensor, classes: Tensor, share: float, *, num_classes: int) -> Tensor:
    """Return the confidence of each class, (K,), that `share` of the pixels predicted as it reach; else 0.

    Args:
        confidence: (N,) largest probabilities.
        classes: (N,) their classes.
        share: In (0, 1].
        num_classes: K.
    """
    thresholds = torch.zeros(num_classes)
    for each in torch.unique(classes).tolist():
        thresholds[each] = float(np.quantile(confidence[classes == each].numpy(), 1 - share, method="higher"))
    return thresholds


def pseudo_rows(bank: Bank, probabilities: Tensor, options: PseudoOptions, *, share: float) -> Rows:
    """Return unlabeled pixels with their likeliest classes as targets, where a teacher is sure.

    Args:
        bank: Unlabeled pixels.
        probabilities: (N, K) of a teacher.
        options: How much a pixel counts.
        share: Share of each predicted class that counts.
    """
    confidence, classes = probabilities.max(dim=1)
    targets = torch.zeros(probabilities.shape)
    weights = PseudoWeights.of(probabilities, options, share=share)(confidence, classes)
    targets[torch.arange(len(classes)), classes] = weights
    return Rows(bank.features, targets)


@dataclass(frozen=True)
class SelfTrained:
    """Heads of a self-training, and its last pseudo labels."""

    heads: list[Head]
    """Of labels alone, then of each round; before the last one, those of the first part's teacher."""
    teacher: Tensor | None
    """(N, K): probabilities of the unlabeled pixels, from which the last head's pseudo labels are."""


def self_train(
    fit: Fit,
    labeled: Bank,
    unlabeled: Bank,
    options: PseudoOptions,
    *,
    rounds: int,
    start: Head | None = None,
) -> SelfTrained:
    """Fit the head of labels alone, then those of each round, each from new weights.

    A head remembers the pseudo labels that it was fitted to, so it would repeat their mistakes as its own ones,
    surer each time. From the second round on, each part of the unlabeled images gets its labels from a head that
    was fitted to those of the other parts; only the last head is fitted to all.

    Args:
        fit: Fits a head.
        labeled: Labeled pixels.
        unlabeled: Unlabeled ones, perhaps with a teacher of another run: there is the last round alone then.
        options: How pseudo labels count.
        rounds: Rounds of self-training.
        start: The head of labels alone, if it was fitted before.
    """
    rows = labeled_rows(labeled, options.num_classes)
    heads = [start or fit([rows], None)]
    parts = [unlabeled.images % PARTS == part for part in range(PARTS)]
    if unlabeled.teacher is not None:
        found, shares = unlabeled.teacher, shares_of_rounds(rounds)[-1:]
    else:
        found, shares = heads[0].probabilities(unlabeled.features), shares_of_rounds(rounds)
    # Rounds of teachers, each fitted to what the others label
    for share in shares[:-1]:
        pseudo = pseudo_rows(unlabeled, found, options, share=share)
        teachers, found = [], torch.empty(pseudo.targets.shape)
        for part in parts:
            targets = pseudo.targets * ~part[:, None]
            teachers.append(_fitted_to_both(fit, rows, Rows(pseudo.features, targets), options))
            found[part] = teachers[-1].probabilities(unlabeled.features, part.nonzero()[:, 0])
        heads.append(teachers[0])
    # The last round
    pseudo = pseudo_rows(unlabeled, found, options, share=shares[-1])
    heads.append(_fitted_to_both(fit, rows, pseudo, options))
    return SelfTrained(heads, found)


def _fitted_to_both(fit: Fit, rows: Rows, pseudo: Rows, options: PseudoOptions) -> Head:
    """Return a head of labels and pseudo labels, which have the share `options.weight` of the whole."""
    total = float(pseudo.targets.sum()) * len(pseudo.features)
    if total == 0:  # a single image has no other part
        return fit([rows], None)
    factor = options.weight / (1 - options.weight) * float(rows.targets.sum()) * len(rows.features) / total
    return fit([rows, Rows(pseudo.features, pseudo.targets * factor)], None)


def right_of_surest(
    confidence: Tensor, classes: Tensor, labels: Tensor, share: float, *, num_classes: int
) -> float:
    """Return how many of the surest pixels of each predicted class have the right one, in [0, 1].

    Args:
        confidence: (N,) largest probabilities of pixels that the fit has not seen.
        classes: (N,) their classes.
        labels: (N,) what they should be.
        share: Share of each predicted class that is looked at.
        num_classes: K.
    """
    thresholds = class_thresholds(confidence, classes, share, num_classes=num_classes)
    surest = confidence >= thresholds[classes]
    return float((classes == labels)[surest].float().mean())


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
