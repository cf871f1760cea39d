"""The scale at which the encoder sees images, chosen by labeled images kept out of the fit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gmtool.artifact.run_record import Candidate, Choice
from gmtool.classes import ClassSet
from gmtool.config import TrainConfig
from gmtool.console import remark
from gmtool.data.datasets import TrainingData
from gmtool.nn.model import GuidedMixNet
from gmtool_training.data.cache import Readers
from gmtool_training.probe.bank import Bank, View
from gmtool_training.probe.collect import affordable_pixels, labeled_bank
from gmtool_training.probe.gain import gain_of
from gmtool_training.probe.head import device_of_fits, fit_linear
from gmtool_training.probe.kinds import Kind, fit_kind
from gmtool_training.probe.self_training import folds_of_partitions

SCALE_PIXELS = 200
"""Pixels of a labeled image from which the input scale is chosen."""
SCALE_IMAGES = 60
"""Labeled images from which it is chosen, at most: with hundreds it would take longer than everything else."""
SCALE_PARTITIONS = 2
"""Ways to part them into those that a classifier is fitted to and those that it is scored on."""
LEAST_RATIO = 0.5
"""Gain of a larger scale over its standard error, at least: it costs four times as much."""


def choose_input_scale(
    network: GuidedMixNet, config: TrainConfig, data: TrainingData, classes: ClassSet, read: Readers
) -> tuple[float, Choice | None]:
    """Return the candidate of `probe.input_scales` with which a linear classifier does best on images kept out.

    And the figures of all; None if there is no choice.
    """
    candidates = sorted(config.probe.input_scales)
    if len(candidates) == 1:
        return candidates[0], None
    scores = scores_at_scales(network, candidates, config, data, classes, read)
    best = best_scale({scale: score.kind.confusions for scale, score in scores.items()})
    shown = ", ".join(f"{scale:g}: {100 * score.kind.miou:.1f} %" for scale, score in scores.items())
    remark(f"input scale {best:g}; on labeled images kept out, {shown}")
    choice = Choice(
        "input scale",
        f"a larger one must be better by {LEAST_RATIO} standard errors of the difference; linear classifier",
        ("mIoU %", "ms an image"),
        tuple(
            Candidate(
                f"{scale:g}",
                (round(100 * score.kind.miou, 2), round(1000 * score.seconds_an_image)),
                scale == best,
            )
            for scale, score in scores.items()
        ),
    )
    return best, choice


@dataclass(frozen=True)
class ScaleScore:
    """A linear classifier of frozen features on labeled images that were kept out of its fit."""

    kind: Kind
    """The classifier."""
    seconds_an_image: float
    """Time of one view of an image."""


def scores_at_scales(
    network: GuidedMixNet,
    scales: Sequence[float],
    config: TrainConfig,
    data: TrainingData,
    classes: ClassSet,
    read: Readers,
) -> dict[float, ScaleScore]:
    """Score the features of an encoder at input scales; all see the same pixels and parts of the images."""
    indices = _some(len(data.labeled.samples), config.run.seed)
    # Half of the pixels that fit, so that they still fit for the last scale: fewer would be other ones
    pixels = max(1, affordable_pixels(network, len(indices), 1, 2 * SCALE_PIXELS) // 2)
    if pixels < SCALE_PIXELS:
        remark(f"input scale: {pixels} pixels of a labeled image instead of {SCALE_PIXELS}, for lack of memory")
    return {
        scale: _score_at_scale(network, scale, config, data, classes, read, indices=indices, pixels=pixels)
        for scale in scales
    }


def _score_at_scale(
    network: GuidedMixNet,
    scale: float,
    config: TrainConfig,
    data: TrainingData,
    classes: ClassSet,
    read: Readers,
    *,
    indices: Sequence[int],
    pixels: int,
) -> ScaleScore:
    """Score the features at one scale, of so many pixels of some labeled images."""
    random, before = np.random.default_rng(config.run.seed), network.input_scale
    network.input_scale = scale
    started = time.monotonic()
    bank = labeled_bank(
        network,
        data,
        classes,
        read,
        [View(1.0, False)],
        pixels=pixels,
        config=config,
        random=random,
        indices=indices,
    )
    seconds = time.monotonic() - started
    network.input_scale = before
    kind = _linear_kind(bank, len(classes), random, device_of_fits(network))
    return ScaleScore(kind, seconds / len(indices))


def _some(count: int, seed: int) -> list[int]:
    """Return all indices below `count`, or `SCALE_IMAGES` of them."""
    if count <= SCALE_IMAGES:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:SCALE_IMAGES].tolist())


def best_scale(confusions: Mapping[float, Tensor]) -> float:
    """Return the scale to take.

    A larger scale costs four times as much: it must be better than a smaller one by `LEAST_RATIO` standard errors
    of their difference over the images.

    Args:
        confusions: Of each scale, (groups, K, K) of the same images.
    """
    best, *larger = sorted(confusions)
    for candidate in larger:
        if gain_of(confusions[best], confusions[candidate]).ratio > LEAST_RATIO:
            best = candidate
    return best


def _linear_kind(bank: Bank, num_classes: int, random: np.random.Generator, device: torch.device) -> Kind:
    """Return linear classifiers, each scored on images that were kept out of its fit."""
    folds = folds_of_partitions(bank, SCALE_PARTITIONS, random)
    return fit_kind("linear", lambda rows, _: fit_linear(rows, device=device), bank, folds, num_classes)
