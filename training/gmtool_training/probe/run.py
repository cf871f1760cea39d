"""A run of the probe: input scale, features, classifier, self-training, each step judged by labels kept out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gmtool.artifact.checkpoints import read_checkpoint
from gmtool.artifact.lookup import find_checkpoint
from gmtool.classes import ClassSet
from gmtool.config import ProbeConfig, TrainConfig
from gmtool.console import remark
from gmtool.data.datasets import TrainingData
from gmtool.errors import ConfigError
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.pyramid_decoder import PyramidDecoder
from gmtool_training.data.cache import Readers
from gmtool_training.method.other_run import TeacherOfOtherRun, load_teacher
from gmtool_training.probe.bank import Bank, views_of
from gmtool_training.probe.collect import affordable_views, is_bf16, labeled_bank, unlabeled_bank
from gmtool_training.probe.head import Head, HiddenOptions, fit_hidden, fit_linear, head_of, install
from gmtool_training.probe.self_training import (
    FOLDS,
    Fit,
    PseudoOptions,
    choose_threshold,
    folds_of,
    labeled_rows,
    mean_iou,
    pixel_confusion,
    reliability,
    self_train,
)

TOLERATED = 0.005
"""Mean IoU that self-training may lose on the images kept out: less is noise."""
THRESHOLD_OF_OTHERS = 0.9
"""Confidence from which the pseudo labels of another run count."""
LABELED_SHARE = 0.2
"""Share of the time that the features of the labeled images may take; views are left out to stay within it."""
FIT_SHARE = 0.4
"""Share of the time left that is kept for fitting once the features are computed."""


@dataclass(frozen=True)
class ProbeResult:
    """A fitted network and what was measured on the way."""

    steps: int
    """Optimiser steps of all fits of the final classifier."""
    channels: int
    """Width of the hidden layer; 0 if a linear classifier did better."""
    helps: bool
    """Whether self-training on the unlabeled images is in it."""


class _Budget:
    """Seconds that are left; endless without a limit."""

    def __init__(self, minutes: float | None, *, started: float) -> None:
        self._end = None if minutes is None else started + 60 * minutes

    def keep(self, seconds: float) -> None:
        """Keep time for what comes after the fit."""
        if self._end is not None:
            self._end -= seconds

    @property
    def left_s(self) -> float:
        return float("inf") if self._end is None else max(0.0, self._end - time.monotonic())


def check_probe(config: TrainConfig, *, labeled: int, processes: int) -> None:
    """Refuse settings with which the probe cannot run.

    Raises:
        ConfigError: The decoder is not `pyramid`, several processes were started, or there are too few labeled
            images to keep some out of a fit.
    """
    if labeled < FOLDS:
        raise ConfigError(
            f"method.name=probe needs at least {FOLDS} labeled images, to keep some out of a fit; got {labeled}"
        )
    if config.model.decoder != "pyramid":
        raise ConfigError(
            "method.name=probe fits the decoder pyramid: --set model.decoder=pyramid, or --recipe probe"
        )
    if processes > 1:
        raise ConfigError("method.name=probe runs in one process: start it without torchrun")


def fit_probe(
    network: GuidedMixNet,
    config: TrainConfig,
    data: TrainingData,
    classes: ClassSet,
    read: Readers,
    *,
    started: float,
) -> ProbeResult:
    """Fit the decoder of a network whose encoder stays as it is; the network ends in evaluation mode.

    Args:
        network: With pretrained encoder weights; its `input_scale` is already chosen.
        config: The whole run.
        data: Labeled and unlabeled samples.
        classes: The classes.
        read: Readers of their images and masks.
        started: When the run began, `time.monotonic`: choosing the input scale took time too.
    """
    probe, random = config.probe, np.random.default_rng(config.run.seed)
    budget = _Budget(probe.minutes, started=started)
    network.eval()
    views = affordable_views(
        network, data, read, views_of(probe.scales), LABELED_SHARE * budget.left_s, bf16=is_bf16(config)
    )
    # Features of the labeled and, as far as the time goes, of the unlabeled images
    began = time.monotonic()
    labeled = labeled_bank(
        network, data, classes, read, views, pixels=probe.labeled_pixels, config=config, random=random
    )
    seconds = time.monotonic() - began
    remark(f"features of {len(data.labeled.samples)} labeled images, {len(views)} views each: {seconds:.0f} s")
    seconds_a_view = seconds / (len(data.labeled.samples) * len(views))
    budget.keep(seconds_a_view * len(data.val.samples))  # validation looks at each image once
    unlabeled = None
    if probe.rounds and data.unlabeled.samples:
        unlabeled = unlabeled_bank(
            network,
            data,
            read,
            views,
            config=config,
            seconds=(1 - FIT_SHARE) * budget.left_s,
            seconds_a_view=seconds_a_view,
            random=random,
            teacher=_teacher(network, config, classes),
        )
    # The kind of classifier, and whether unlabeled images help it: judged by labeled images kept out of the fit
    folds = folds_of(labeled, FOLDS, random)
    fits = _fits(probe, config.model.decoder_channels, random)
    judged = [_judge(kind, fit, labeled, folds, unlabeled, len(classes), probe) for kind, fit in fits.items()]
    best = max(judged, key=lambda one: one.score)
    remark(f"classifier: {best.kind}; unlabeled images {'used' if best.helps else 'left out: labels alone'}")
    # That classifier on all labels
    fit = fits[best.kind]
    heads = [fit([labeled_rows(labeled, len(classes))], _earlier_head(network, config, best.kind))]
    if best.helps and unlabeled is not None:
        heads = self_train(fit, labeled, unlabeled, best.options, rounds=probe.rounds, start=heads[0])
    _install(heads[-1], network)
    channels = config.model.decoder_channels if best.kind == "hidden layer" else 0
    return ProbeResult(probe.steps * len(heads), channels, best.helps)


def _teacher(network: GuidedMixNet, config: TrainConfig, classes: ClassSet) -> TeacherOfOtherRun | None:
    """Return the network of `method.teacher_run`, if there is one."""
    source = config.method.teacher_run
    return None if source is None else load_teacher(source, classes, next(network.parameters()).device)


def _earlier_head(network: GuidedMixNet, config: TrainConfig, kind: str) -> Head | None:
    """Return the hidden layer of the run that `model.init` names, if it has one of this width."""
    if config.model.init is None or kind == "linear":  # a linear fit ends in the same place wherever it starts
        return None
    earlier = read_checkpoint(*find_checkpoint(config.model.init, None)).model
    if (earlier.decoder, earlier.decoder_channels) != ("pyramid", config.model.decoder_channels):
        return None
    assert isinstance(network.decoder, PyramidDecoder)
    return head_of(network.decoder)


def _fits(probe: ProbeConfig, channels: int, random: np.random.Generator) -> dict[str, Fit]:
    """Return the kinds of classifiers that the settings allow, and what fits one."""
    options = HiddenOptions(channels=channels, steps=probe.steps)
    every: dict[str, Fit] = {
        "hidden layer": lambda rows, start: fit_hidden(rows, options=options, random=random, start=start),
        "linear": lambda rows, start: fit_linear(rows, start=start),
    }
    if channels == 0 or probe.head == "linear":
        del every["hidden layer"]
    elif probe.head == "hidden":
        del every["linear"]
    return every


@dataclass(frozen=True)
class _Judged:
    """A kind of classifier on the labeled images that were kept out of its fit."""

    kind: str
    options: PseudoOptions
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


def _judge(
    kind: str,
    fit: Fit,
    labeled: Bank,
    folds: Sequence[Tensor],
    unlabeled: Bank | None,
    num_classes: int,
    probe: ProbeConfig,
) -> _Judged:
    """Fit one kind to the labels that are not kept out, alone and with pseudo labels, and say how it does."""
    heads = [fit([labeled_rows(labeled.rows(~kept_out), num_classes)], None) for kept_out in folds]
    alone = _pooled_mean_iou(heads, labeled, folds, num_classes)
    line = f"{kind}: {100 * alone:.1f} % on labeled images kept out"
    # How sure is sure enough
    confidence, right = torch.zeros(len(labeled.labels)), torch.zeros(len(labeled.labels), dtype=torch.bool)
    for head, kept_out in zip(heads, folds, strict=True):
        kept = labeled.rows(kept_out)
        confidence[kept_out], found = head.probabilities(kept.features).max(dim=1)
        right[kept_out] = found == kept.labels
    measured = reliability(confidence, right)
    threshold = probe.threshold
    if threshold is None:  # a teacher from another run may have been trained on the images kept out
        own = unlabeled is None or unlabeled.teacher is None
        threshold = choose_threshold(measured) if own else THRESHOLD_OF_OTHERS
    options = PseudoOptions(num_classes, threshold, probe.balance, probe.weight)
    if unlabeled is None:
        remark(line)
        return _Judged(kind, options, alone, None)
    # A round of self-training
    trained = [
        self_train(fit, labeled.rows(~kept_out), unlabeled, options, rounds=1, start=head)[-1]
        for head, kept_out in zip(heads, folds, strict=True)
    ]
    after = _pooled_mean_iou(trained, labeled, folds, num_classes)
    place = int(np.argmin([abs(each - threshold) for each in measured.thresholds]))
    remark(
        f"{line}, {100 * after:.1f} % with pseudo labels above {threshold:g}: "
        f"{100 * measured.kept[place]:.0f} % of the pixels, {100 * measured.right[place]:.0f} % of them right"
    )
    return _Judged(kind, options, alone, after)


def _pooled_mean_iou(heads: Sequence[Head], labeled: Bank, folds: Sequence[Tensor], num_classes: int) -> float:
    """Return the mean IoU over all labeled images, each predicted by the head that has not seen it."""
    confusions = [
        pixel_confusion(head, labeled.rows(kept_out), num_classes)
        for head, kept_out in zip(heads, folds, strict=True)
    ]
    return mean_iou(torch.stack(confusions).sum(dim=0))


def _install(head: Head, network: GuidedMixNet) -> None:
    decoder = network.decoder
    assert isinstance(decoder, PyramidDecoder)
    if len(head.layers) == 1 and decoder.last is not None:  # fitted without the hidden layer that was planned
        decoder = PyramidDecoder(
            network.encoder.strides,
            network.encoder.channels,
            channels=0,
            num_classes=head.layers[0].out_features,  # type: ignore[arg-type]
        )
        network.decoder = decoder.eval()
    install(head, decoder)
