"""Judge self-training by labeled images that are kept out of the fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from gmtool.artifact.run_record import Candidate, Choice
from gmtool.config import ProbeConfig
from gmtool.console import remark
from gmtool_training.probe.bank import Bank
from gmtool_training.probe.gain import Gain, confusions_kept_out, gain_of
from gmtool_training.probe.kinds import Kind
from gmtool_training.probe.self_training import (
    FOLDS,
    LEAST_RIGHT,
    PseudoOptions,
    Reliability,
    choose_threshold,
    reliability,
    self_train,
)

MIN_MEAN_RATIO = 1.2
"""Gain over its standard error from which pseudo labels are used, in the mean of the ways to choose them. A gain
that rests on a single image has 1."""
MIN_RATIO, MIN_RATIO_OF_ONE_PARTITION = 0.0, 0.8
"""The same for each way; with one partition of the labeled images chance moves it by more than one."""
THRESHOLD_OF_OTHERS = 0.9
"""Confidence from which the pseudo labels of another run count."""


@dataclass(frozen=True)
class Tried:
    """A way to choose pseudo labels, on labeled images that were kept out of the fit."""

    options: PseudoOptions
    gain: Gain
    """What one round of self-training adds."""

    @property
    def counting(self) -> str:
        """Return which pseudo labels count."""
        threshold = self.options.threshold
        known = "the surest pseudo labels of each class"
        return known if threshold is None else f"pseudo labels above {threshold:g}"


@dataclass(frozen=True)
class Judged:
    """Self-training of a kind of classifier on the labeled images that were kept out of its fits."""

    kind: Kind
    measured: Reliability
    """How often its pseudo labels are right."""
    tried: tuple[Tried, ...] = ()
    """Ways to choose pseudo labels; empty without unlabeled images."""

    @property
    def least_ratio(self) -> float:
        """Return the gain over its standard error that each way must be above."""
        return MIN_RATIO_OF_ONE_PARTITION if len(self.kind.folds) == FOLDS else MIN_RATIO

    @property
    def helps(self) -> bool:
        """Return whether self-training adds more than chance would, in each way and by more in the mean.

        Where pseudo labels above one threshold add nothing, more of the rare classes do harm that labeled images
        cannot show: they may be frames of the videos that unlabeled ones are from. So one way alone is no proof.
        """
        ratios = [each.gain.ratio for each in self.tried]
        return bool(ratios) and min(ratios) > self.least_ratio and fmean(ratios) > MIN_MEAN_RATIO

    @property
    def taken(self) -> Tried | None:
        """Return the way that is taken if self-training helps; None without unlabeled images.

        The largest gain less its standard error: the surest gain can be a small one, the largest one chance.
        """
        return max(self.tried, key=lambda each: each.gain.points - each.gain.error, default=None)


def judge(
    kind: Kind,
    labeled: Bank,
    unlabeled: Bank | None,
    num_classes: int,
    probe: ProbeConfig,
) -> Judged:
    """Go on from the fits of a kind with pseudo labels, and say what they add.

    Args:
        kind: Fitted to the labels that each fold leaves.
        labeled: Labeled pixels.
        unlabeled: Unlabeled pixels, if there are any.
        num_classes: K.
        probe: Settings.
    """
    measured = _measured(kind, labeled)
    if unlabeled is None:
        return Judged(kind, measured)
    # A round of self-training, with each way to choose pseudo labels
    tried = []
    for threshold in _thresholds(measured, probe, own=unlabeled.teacher is None):
        options = PseudoOptions(num_classes, threshold, probe.balance, probe.weight)
        trained = [
            self_train(kind.fit, labeled.rows(~kept_out), unlabeled, options, rounds=1, start=head).heads[-1]
            for head, kept_out in zip(kind.heads, kind.folds, strict=True)
        ]
        after = confusions_kept_out(trained, labeled, kind.folds, num_classes)
        tried.append(Tried(options, gain_of(kind.confusions, after)))
    remark(
        f"{kind.name}, a round with unlabeled images: "
        + ", ".join(f"{each.gain} points with {each.counting}" for each in tried)
    )
    return Judged(kind, measured, tuple(tried))


def _measured(kind: Kind, labeled: Bank) -> Reliability:
    """Return how often the heads are right on the labeled pixels that were kept out of their fits."""
    confidence, right = [], []
    for head, kept_out in zip(kind.heads, kind.folds, strict=True):
        kept = labeled.rows(kept_out)
        sure, found = head.probabilities(kept.features).max(dim=1)
        confidence.append(sure)
        right.append(found == kept.labels)
    return reliability(torch.cat(confidence), torch.cat(right))


def _thresholds(measured: Reliability, probe: ProbeConfig, *, own: bool) -> tuple[float | None, ...]:
    """Return the thresholds to try; None stands for the surest of each class.

    A teacher of another run may have been trained on the images kept out: nothing is measured on them then.
    """
    if probe.threshold is not None:
        return (probe.threshold,)
    return (None, choose_threshold(measured)) if own else (THRESHOLD_OF_OTHERS,)


def choices_of(kinds: Sequence[Kind], best: Judged, probe: ProbeConfig, *, own: bool) -> tuple[Choice, ...]:
    """Return what was measured: kinds of classifiers, unlabeled images, confidence of pseudo labels.

    Args:
        kinds: All kinds that were fitted.
        best: The one that was taken.
        probe: Settings.
        own: Whether the pseudo labels are the probe's own, not those of another run.
    """
    rule = "the only one of the settings, or that the time allows"
    if len(kinds) > 1:
        rule = f"{kinds[0].name}, unless another is better by more than the standard error of the difference"
    choices = [
        Choice(
            "classifier",
            rule,
            ("labels alone %",),
            tuple(Candidate(each.name, (_percent(each.miou),), each is best.kind) for each in kinds),
        )
    ]
    taken = best.taken
    if taken is None:
        return tuple(choices)
    gains = ", ".join(f"{each.gain} with {each.counting}" for each in best.tried)
    needed = f"it adds more than {MIN_MEAN_RATIO:g} times its standard error"
    if len(best.tried) > 1:
        least = f"{MIN_MEAN_RATIO:g} on average and {best.least_ratio:g} each way"
        needed = f"gain over standard error is more than {least}"
    choices.append(
        Choice(
            "unlabeled images",
            f"used if {needed}: {gains}",
            ("mIoU %",),
            (
                Candidate("labels alone", (_percent(best.kind.miou),), not best.helps),
                *(
                    Candidate(
                        each.counting,
                        (_percent(best.kind.miou + each.gain.points),),
                        best.helps and each is taken,
                    )
                    for each in best.tried
                ),
            ),
        )
    )
    rule = f"the lowest above which {100 * LEAST_RIGHT:.0f} % are right, else the highest"
    if probe.threshold is not None:
        rule = f"probe.threshold={probe.threshold:g}"
    elif not own:
        rule = f"{THRESHOLD_OF_OTHERS:g} for pseudo labels of another run; figures of labels alone"
    measured = best.measured
    choices.append(
        Choice(
            "confidence from which pseudo labels count",
            rule,
            ("pixels %", "of them right %"),
            tuple(
                Candidate(
                    f"{threshold:g}", (_percent(kept), _percent(right)), threshold == taken.options.threshold
                )
                for threshold, kept, right in zip(measured.thresholds, measured.kept, measured.right, strict=True)
            ),
        )
    )
    return tuple(choices)


def _percent(ratio: float | None) -> float | None:
    """Return a ratio in [0, 1] as per cent; None for None and NaN."""
    return None if ratio is None or math.isnan(ratio) else round(100 * ratio, 2)
