"""The scale at which the encoder sees images, chosen by labeled images kept out of the fit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gmtool.classes import ClassSet
from gmtool.config import TrainConfig
from gmtool.console import remark
from gmtool.data.datasets import TrainingData
from gmtool.nn.model import GuidedMixNet
from gmtool_training.data.cache import Readers
from gmtool_training.probe.bank import Bank, View
from gmtool_training.probe.collect import labeled_bank
from gmtool_training.probe.head import fit_linear
from gmtool_training.probe.self_training import FOLDS, folds_of, labeled_rows, mean_iou, pixel_confusion

SCALE_PIXELS = 200
"""Pixels of a labeled image from which the input scale is chosen."""


def choose_input_scale(
    network: GuidedMixNet, config: TrainConfig, data: TrainingData, classes: ClassSet, read: Readers
) -> float:
    """Return the candidate of `probe.input_scales` with which a linear classifier does best on images kept out.

    A larger scale costs four times as much: it must be better than a smaller one by more than the standard error
    of their difference over the parts that the labeled images are divided into.
    """
    candidates = sorted(config.probe.input_scales)
    if len(candidates) == 1:
        return candidates[0]
    before, scores = network.input_scale, {}
    for candidate in candidates:
        network.input_scale = candidate
        random = np.random.default_rng(config.run.seed)  # the same pixels and parts for all
        bank = labeled_bank(
            network,
            data,
            classes,
            read,
            [View(1.0, False)],
            pixels=SCALE_PIXELS,
            balance=config.probe.balance,
            random=random,
        )
        scores[candidate] = _cross_validated(bank, len(classes), random)
    network.input_scale = before
    best = candidates[0]
    for candidate in candidates[1:]:
        gain = scores[candidate] - scores[best]
        if gain.mean() > gain.std(ddof=1) / len(gain) ** 0.5:
            best = candidate
    shown = ", ".join(f"{scale:g}: {100 * score.mean():.1f} %" for scale, score in scores.items())
    remark(f"input scale {best:g}; on labeled images kept out, {shown}")
    return best


def _cross_validated(bank: Bank, num_classes: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the mean IoU of each part of the images, with a linear classifier fitted to the others: (FOLDS,)."""
    scores = []
    for fitted, kept_out in folds_of(bank, FOLDS, random):
        head = fit_linear([labeled_rows(fitted, num_classes)])
        scores.append(mean_iou(pixel_confusion(head, kept_out, num_classes)))
    return np.array(scores)
