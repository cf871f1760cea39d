"""Self-training of the probe: pseudo labels, held against labels that were kept out of the fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gmtool_training.probe.bank import Bank
from gmtool_training.probe.head import Head, Rows, for_even_pixels
from gmtool_training.probe.propagation import can_propagate, propagate

Fit = Callable[[Sequence[Rows], Head | None], Head]
"""From training rows, and a head to start from, to a fitted head."""
FOLDS = 3
"""Parts of the labeled images, each kept out of a fit once; the last fit takes all."""
PARTITIONS = 3
"""Ways to part them that self-training is judged by, if the time allows: with one way, as much depends on which
images are kept out together as on the images."""
THRESHOLDS = (0.6, 0.7, 0.8, 0.9, 0.95)
LEAST_RIGHT = 0.9
"""Share of the pseudo labels above a threshold that must be right for it to be taken."""
PARTS = 2
"""Parts of the unlabeled images that label each other."""


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
    threshold: float | None
    """Pixels whose largest probability is below do not count; None: the surest of each class count."""
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
    """Weights of pseudo labels by their class."""

    thresholds: Tensor
    """(K,): pixels of the class that are less confident do not count."""
    weights: Tensor
    """(K,): weight of one that does; 0 of a class that is never predicted."""

    @classmethod
    def of(cls, probabilities: Tensor, options: PseudoOptions, *, share: float) -> PseudoWeights:
        """Return those of a teacher's (N, K) probabilities.

        Without a threshold, `share` of each predicted class counts.
        """
        confidence, classes = probabilities.max(dim=1)
        if options.threshold is None:
            thresholds = _thresholds_of_shares(confidence, classes, share, num_classes=options.num_classes)
        else:
            thresholds = torch.full((options.num_classes,), options.threshold)
        keep = (confidence >= thresholds[classes]).float()
        counts = torch.zeros(len(thresholds)).index_add_(0, classes, keep)
        part = counts / counts.sum().clamp(min=1)
        weights = torch.where(part > 0, part.clamp(min=1e-5) ** -options.balance, torch.zeros(()))
        return cls(thresholds, weights)

    def __call__(self, confidence: Tensor, classes: Tensor) -> Tensor:
        """Return the weight of each pixel; 0 for one that does not count. All tensors are of one shape."""
        return self.weights[classes] * (confidence >= self.thresholds[classes])


def _thresholds_of_shares(confidence: Tensor, classes: Tensor, share: float, *, num_classes: int) -> Tensor:
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
        share: Share of each predicted class that counts, without a threshold.
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
    teacher: Head
    """Of the last round."""
    found: Tensor
    """(N, K): probabilities of the unlabeled pixels, from which the last head's pseudo labels are."""


def self_train(
    fit: Fit,
    labeled: Bank,
    unlabeled: Bank,
    options: PseudoOptions,
    *,
    rounds: int,
    start: Head | None = None,
    propagation: bool = False,
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
        propagation: Let the labels of the first round pass between similar pixels before they count, if the head
            of labels alone has a hidden layer; see `propagate`.
    """
    rows = labeled_rows(labeled, options.num_classes)
    heads = [start or fit([rows], None)]
    parts = [unlabeled.images % PARTS == part for part in range(PARTS)]
    teacher = _teacher(heads[0], labeled, options)
    if unlabeled.teacher is not None:
        found, shares = unlabeled.teacher, shares_of_rounds(rounds)[-1:]
    else:
        found, shares = teacher.probabilities(unlabeled.features), shares_of_rounds(rounds)
        if propagation and rounds and can_propagate(heads[0]):
            found = propagate(heads[0], labeled, unlabeled, found)
    # Rounds of teachers, each fitted to what the others label
    for share in shares[:-1]:
        pseudo = pseudo_rows(unlabeled, found, options, share=share)
        found = torch.empty(pseudo.targets.shape)
        students = []
        for part in parts:
            targets = pseudo.targets * ~part[:, None]
            students.append(_fitted_to_both(fit, rows, Rows(pseudo.features, targets), options))
            teacher = _teacher(students[-1], labeled, options)
            found[part] = teacher.probabilities(unlabeled.features, part.nonzero()[:, 0])
        heads.append(students[0])
    # The last round
    for share in shares[-1:]:
        pseudo = pseudo_rows(unlabeled, found, options, share=share)
        heads.append(_fitted_to_both(fit, rows, pseudo, options))
    return SelfTrained(heads, teacher, found)


def _teacher(head: Head, labeled: Bank, options: PseudoOptions) -> Head:
    """Return what gives pseudo labels: a threshold is of a head as it was fitted, shares are of even pixels."""
    return for_even_pixels(head, labeled.drawn) if options.threshold is None else head


def _fitted_to_both(fit: Fit, rows: Rows, pseudo: Rows, options: PseudoOptions) -> Head:
    """Return a head of labels and pseudo labels, which have the share `options.weight` of the whole."""
    total = float(pseudo.targets.sum()) * len(pseudo.features)
    if total == 0:  # a single image has no other part
        return fit([rows], None)
    factor = options.weight / (1 - options.weight) * float(rows.targets.sum()) * len(rows.features) / total
    return fit([rows, Rows(pseudo.features, pseudo.targets * factor)], None)


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


def folds_of_partitions(bank: Bank, count: int, random: np.random.Generator) -> list[Tensor]:
    """Return the folds of `count` ways to part the labeled images, one way after the other; see `folds_of`."""
    return [kept_out for _ in range(count) for kept_out in folds_of(bank, FOLDS, random)]


def folds_of(bank: Bank, count: int, random: np.random.Generator) -> list[Tensor]:
    """Return the pixels that are kept out of each of `count` fits, (N,) bool: a part of the images, each once."""
    order = random.permutation(torch.unique(bank.images).numpy())
    return [torch.isin(bank.images, torch.from_numpy(order[fold::count].copy())) for fold in range(count)]


def pixel_confusion(head: Head, bank: Bank, num_classes: int) -> Tensor:
    """Return the confusion matrix of the labeled pixels of a bank, in the first view: (K, K), rows are labels.

    Pixels that were drawn in proportion to a weight count by its inverse: else a head that sees rare classes
    everywhere would look good.
    """
    predicted = head.probabilities(bank.features[:1]).argmax(dim=1)
    known = (bank.labels >= 0) & (bank.labels < num_classes)
    pairs = bank.labels[known] * num_classes + predicted[known]
    matrix = torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    if bank.drawn is None:
        return matrix
    drawn = bank.drawn[:num_classes, None]
    return torch.where(drawn > 0, matrix / drawn, torch.zeros(()))


def mean_iou(confusion: Tensor) -> float:
    """Return the mean IoU over the classes that occur, in [0, 1]."""
    matrix = confusion.double()
    union = matrix.sum(dim=0) + matrix.sum(dim=1) - matrix.diagonal()
    occurs = matrix.sum(dim=1) > 0
    return float((matrix.diagonal()[occurs] / union[occurs]).mean())
