"""Judge kinds of classifiers, and self-training, by labeled images that are kept out of the fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool.artifact.run_record import Candidate, Choice
from gmtool.config import ProbeConfig
from gmtool.console import remark
from gmtool_training.probe.bank import Bank
from gmtool_training.probe.head import Head
from gmtool_training.probe.self_training import (
    Fit,
    PseudoOptions,
    labeled_rows,
    mean_iou,
    pixel_confusion,
    right_of_surest,
    self_train,
    shares_of_rounds,
)

TOLERATED = 0.005
"""Mean IoU that self-training may lose on the images kept out: less is noise."""


@dataclass(frozen=True)
class Judged:
    """A kind of classifier on the labeled images that were kept out of its fit."""

    kind: str
    options: PseudoOptions
    right: tuple[float, ...]
    """How many of its pseudo labels are right, in [0, 1], of those that count in each round."""
    alone: float
    """Mean IoU of labels alone, in [0, 1]."""
    trained: float | None
    """The same after one round of self-training; None without unlabeled images."""

    @property
    def helps(self) -> bool:
        """Return whether self-training does not lose."""
        return self.trained is not None and self.trained >= self.alone - TOLERATED

    @property
    def score(self) -> float:
        """Return the better of the two."""
        return max(self.alone, self.trained or 0.0)


def judge(
    kind: str,
    fit: Fit,
    labeled: Bank,
    folds: Sequence[Tensor],
    unlabeled: Bank | None,
    num_classes: int,
    probe: ProbeConfig,
) -> Judged:
    """Fit one kind to the labels that are not kept out, alone and with pseudo labels, and say how it does."""
    heads = [fit([labeled_rows(labeled.rows(~kept_out), num_classes)], None) for kept_out in folds]
    alone = _pooled_mean_iou(heads, labeled, folds, num_classes)
    line = f"{kind}: {100 * alone:.1f} % on labeled images kept out"
    options = PseudoOptions(num_classes, probe.balance, probe.weight)
    if unlabeled is None:
        remark(line)
        return Judged(kind, options, (), alone, None)
    # How often pseudo labels are right
    confidence, found = torch.zeros(len(labeled.labels)), torch.zeros(len(labeled.labels), dtype=torch.int64)
    for head, kept_out in zip(heads, folds, strict=True):
        confidence[kept_out], found[kept_out] = head.probabilities(labeled.rows(kept_out).features).max(dim=1)
    right = tuple(
        right_of_surest(confidence, found, labeled.labels, share, num_classes=num_classes)
        for share in shares_of_rounds(probe.rounds)
    )
    # A round of self-training
    trained = [
        self_train(fit, labeled.rows(~kept_out), unlabeled, options, rounds=1, start=head).heads[-1]
        for head, kept_out in zip(heads, folds, strict=True)
    ]
    after = _pooled_mean_iou(trained, labeled, folds, num_classes)
    remark(f"{line}, {100 * after:.1f} % with pseudo labels")
    return Judged(kind, options, right, alone, after)


def choices_of(judged: Sequence[Judged], best: Judged) -> tuple[Choice, ...]:
    """Return what was measured: kinds of classifiers, unlabeled images, how often pseudo labels are right.

    Args:
        judged: All kinds that were judged.
        best: The one that was taken.
    """
    choices = [
        Choice(
            "classifier",
            "the better mIoU decides",
            ("labels alone %", "with pseudo labels %"),
            tuple(
                Candidate(each.kind, (_percent(each.alone), _percent(each.trained)), each is best)
                for each in judged
            ),
        )
    ]
    if best.trained is None:
        return tuple(choices)
    gain = 100 * (best.trained - best.alone)
    choices.append(
        Choice(
            "unlabeled images",
            f"used if they lose no more than {100 * TOLERATED:g} points; they change the score by {gain:+.1f}",
            ("mIoU %",),
            (
                Candidate("labels alone", (_percent(best.alone),), not best.helps),
                Candidate("with pseudo labels", (_percent(best.trained),), best.helps),
            ),
        )
    )
    choices.append(
        Choice(
            "pseudo labels that count",
            "the surest of each class, more of them in each round; as right as those of labels alone are",
            ("right %",),
            tuple(
                Candidate(f"round {number}: {100 * share:.0f} % of each class", (_percent(right),), best.helps)
                for number, (share, right) in enumerate(
                    zip(shares_of_rounds(len(best.right)), best.right, strict=True), start=1
                )
            ),
        )
    )
    return tuple(choices)


def _percent(ratio: float | None) -> float | None:
    """Return a ratio in [0, 1] as per cent; None for None and NaN."""
    return None if ratio is None or math.isnan(ratio) else round(100 * ratio, 2)


def _pooled_mean_iou(heads: Sequence[Head], labeled: Bank, folds: Sequence[Tensor], num_classes: int) -> float:
    """Return the mean IoU over all labeled images, each predicted by the head that has not seen it."""
    confusions = [
        pixel_confusion(head, labeled.rows(kept_out), num_classes)
        for head, kept_out in zip(heads, folds, strict=True)
    ]
    return mean_iou(torch.stack(confusions).sum(dim=0))
