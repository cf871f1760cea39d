"""A run of the probe: input scale, features, classifier, self-training, each step judged by labels kept out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gmtool.classes import ClassSet
from gmtool.config import ProbeConfig, TrainConfig
from gmtool.console import remark, track
from gmtool.data.datasets import TrainingData
from gmtool.errors import ConfigError, DataError, some_names
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.pyramid_decoder import PyramidDecoder
from gmtool.resources import available_memory
from gmtool_training.data.cache import Readers
from gmtool_training.probe.bank import (
    Bank,
    BankBuilder,
    View,
    any_pixels,
    features_at,
    labeled_pixels,
    views_of,
)
from gmtool_training.probe.head import Head, HiddenOptions, fit_hidden, fit_linear, install
from gmtool_training.probe.self_training import (
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

FOLDS = 3
"""Parts of the labeled images, each kept out of a fit once; the last fit takes all."""
TOLERATED = 0.005
"""Mean IoU that self-training may lose on the images kept out: less is noise."""
SCALE_PIXELS = 200
"""Pixels of a labeled image from which the input scale is chosen."""
MAX_SHARE = 0.25
"""Share of the memory that is free which the features of unlabeled images may take."""
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

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def left_s(self) -> float:
        return float("inf") if self._end is None else max(0.0, self._end - time.monotonic())


def check_probe(config: TrainConfig, processes: int) -> None:
    """Refuse settings with which the probe cannot run.

    Raises:
        ConfigError: The decoder is not `pyramid`, or several processes were started.
    """
    if config.model.decoder != "pyramid":
        raise ConfigError(
            "method.name=probe fits the decoder pyramid: --set model.decoder=pyramid, or --recipe probe"
        )
    if processes > 1:
        raise ConfigError("method.name=probe runs in one process: start it without torchrun")


def fit_probe(
    network: GuidedMixNet, config: TrainConfig, data: TrainingData, classes: ClassSet, read: Readers
) -> ProbeResult:
    """Fit the decoder of a network whose encoder stays as it is; the network ends in evaluation mode.

    Args:
        network: With pretrained encoder weights; its `input_scale` is already chosen.
        config: The whole run.
        data: Labeled and unlabeled samples.
        classes: The classes.
        read: Readers of their images and masks.
    """
    probe, random = config.probe, np.random.default_rng(config.run.seed)
    budget = _Budget(probe.minutes)
    network.eval()
    views = _affordable_views(network, data, read, views_of(probe.scales), LABELED_SHARE * budget.left_s)
    # Features of the labeled and, as far as the time goes, of the unlabeled images
    started = time.monotonic()
    labeled = labeled_bank(
        network, data, classes, read, views, pixels=probe.labeled_pixels, balance=probe.balance, random=random
    )
    seconds = time.monotonic() - started
    remark(f"features of {len(data.labeled.samples)} labeled images, {len(views)} views each: {seconds:.0f} s")
    unlabeled = None
    if probe.rounds and data.unlabeled.samples:
        unlabeled = unlabeled_bank(
            network,
            data,
            read,
            views,
            config=config,
            seconds=(1 - FIT_SHARE) * budget.left_s,
            seconds_a_view=seconds / (len(data.labeled.samples) * len(views)),
            random=random,
        )
    # The kind of classifier, and whether unlabeled images help it: judged by labeled images kept out of the fit
    folds = folds_of(labeled, FOLDS, random)
    fits = _fits(probe, config.model.decoder_channels, random)
    judged = [_judge(kind, fit, folds, unlabeled, len(classes), probe) for kind, fit in fits.items()]
    best = max(judged, key=lambda one: one.score)
    remark(f"classifier: {best.kind}; unlabeled images {'used' if best.helps else 'left out: labels alone'}")
    # That classifier on all labels
    fit, heads = fits[best.kind], []
    if best.helps and unlabeled is not None:
        heads = self_train(fit, labeled, unlabeled, best.options, rounds=probe.rounds)
    else:
        heads = [fit([labeled_rows(labeled, len(classes))], None)]
    _install(heads[-1], network)
    channels = config.model.decoder_channels if best.kind == "hidden layer" else 0
    return ProbeResult(probe.steps * len(heads), channels, best.helps)


def _affordable_views(
    network: GuidedMixNet, data: TrainingData, read: Readers, views: Sequence[View], seconds: float
) -> tuple[View, ...]:
    """Return the views that all labeled images take within `seconds`: the image as it is, then the cheapest."""
    image = read.labeled(0)[0]
    somewhere = torch.zeros(1, dtype=torch.int64)
    started = time.monotonic()
    features_at(network, image, View(1.0, False), somewhere, somewhere)
    # The time grows with the pixels
    whole = (time.monotonic() - started) * len(data.labeled.samples)
    ordered = sorted(views, key=lambda view: (view.scale != 1.0, view.scale))
    costs = np.cumsum([whole * view.scale**2 for view in ordered])
    return tuple(ordered[: max(2, int((costs <= seconds).sum()))])


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
    folds: Sequence[tuple[Bank, Bank]],
    unlabeled: Bank | None,
    num_classes: int,
    probe: ProbeConfig,
) -> _Judged:
    """Fit one kind to the labels that are not kept out, alone and with pseudo labels, and say how it does."""
    heads = [fit([labeled_rows(fitted, num_classes)], None) for fitted, _ in folds]
    kept_out = [each for _, each in folds]
    confusions = [pixel_confusion(head, kept, num_classes) for head, kept in zip(heads, kept_out, strict=True)]
    alone = mean_iou(torch.stack(confusions).sum(dim=0))
    line = f"{kind}: {100 * alone:.1f} % on labeled images kept out"
    # How sure is sure enough
    found = [head.probabilities(kept.features).max(dim=1) for head, kept in zip(heads, kept_out, strict=True)]
    right = [each.indices == kept.labels for each, kept in zip(found, kept_out, strict=True)]
    measured = reliability(torch.cat([each.values for each in found]), torch.cat(right))
    threshold = choose_threshold(measured) if probe.threshold is None else probe.threshold
    options = PseudoOptions(num_classes, threshold, probe.balance, probe.weight)
    if unlabeled is None:
        remark(line)
        return _Judged(kind, options, alone, None)
    # A round of self-training
    trained = [
        self_train(fit, fitted, unlabeled, options, rounds=1, start=head)[-1]
        for head, (fitted, _) in zip(heads, folds, strict=True)
    ]
    confusions = [pixel_confusion(head, kept, num_classes) for head, kept in zip(trained, kept_out, strict=True)]
    after = mean_iou(torch.stack(confusions).sum(dim=0))
    place = int(np.argmin([abs(each - threshold) for each in measured.thresholds]))
    remark(
        f"{line}, {100 * after:.1f} % with pseudo labels above {threshold:g}: "
        f"{100 * measured.kept[place]:.0f} % of the pixels, {100 * measured.right[place]:.0f} % of them right"
    )
    return _Judged(kind, options, alone, after)


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


def class_pixel_weights(counts: Tensor, *, balance: float) -> Tensor:
    """Return the weight of a pixel of each label, (256,): (share of its class) ** -balance; 0 where none occurs.

    Args:
        counts: (K,) labeled pixels of each class.
        balance: See `ProbeConfig`.
    """
    share = counts.double() / counts.sum()
    weights = torch.zeros(256, dtype=torch.float64)
    weights[: len(counts)] = torch.where(share > 0, share.clamp(min=1e-5) ** -balance, torch.zeros(()).double())
    return weights.float()


def labeled_bank(
    network: GuidedMixNet,
    data: TrainingData,
    classes: ClassSet,
    read: Readers,
    views: Sequence[View],
    *,
    pixels: int,
    balance: float,
    random: np.random.Generator,
) -> Bank:
    """Return features of pixels of all labeled images, drawn by the weights of their classes."""
    indices = range(len(data.labeled.samples))
    masks = [read.labeled(index)[1] for index in indices]
    counts = sum(torch.bincount(torch.from_numpy(mask).flatten().long(), minlength=256) for mask in masks)
    assert isinstance(counts, Tensor)
    weights = class_pixel_weights(counts[: len(classes)], balance=balance)
    weights[classes.ignore_index] = 0
    mean = float(np.mean([weights.numpy()[mask].sum() for mask in masks]))
    builder = BankBuilder(network, views)
    for index in track(indices, total=len(indices)):
        image, mask = read.labeled(index)
        builder.add(image, labeled_pixels(mask, weights, pixels, mean_weight=mean, random=random))
    return builder.build()


def unlabeled_bank(
    network: GuidedMixNet,
    data: TrainingData,
    read: Readers,
    views: Sequence[View],
    *,
    config: TrainConfig,
    seconds: float,
    seconds_a_view: float,
    random: np.random.Generator,
) -> Bank:
    """Return features of pixels of unlabeled images: as many images and views as time and memory allow.

    Images that cannot be read are left out and named.
    """
    count = len(data.unlabeled.samples)
    # Every image twice, then other scales as far as the time goes; fewer images only if that is too much
    passes = min(float(len(views)), seconds / (count * seconds_a_view))
    taken = views[: max(2, int(passes))]
    images = max(1, min(count, int(count * passes / len(taken))))
    features = sum(network.encoder.channels) + 2 * network.encoder.channels[-1]
    room = int(MAX_SHARE * available_memory() / (2 * features * len(taken)))
    pixels = max(1, min(config.probe.unlabeled_pixels, room // images))
    started = time.monotonic()
    chosen = np.sort(random.permutation(count)[:images])
    builder, unreadable = BankBuilder(network, taken), []
    for index in track(chosen.tolist(), total=images):
        try:
            image = read.unlabeled(index)
        except DataError:
            unreadable.append(data.unlabeled.samples[index].id)
            continue
        size = (image.shape[0], image.shape[1])
        builder.add(image, any_pixels(size, pixels, ignore_index=255, random=random))
    if unreadable:
        remark(
            f"warning: {len(unreadable)} unlabeled images cannot be read and are left out: "
            f"{some_names(unreadable)}"
        )
    bank = builder.build()
    remark(
        f"features of {images} of {count} unlabeled images, {len(taken)} views each: "
        f"{time.monotonic() - started:.0f} s, {bank.bytes / 2**20:.0f} MiB"
    )
    return bank


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
