"""A run of the probe: input scale, features, classifier, self-training, each step judged by labels kept out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from gmtool.artifact.checkpoints import read_checkpoint
from gmtool.artifact.lookup import find_checkpoint
from gmtool.artifact.run_record import Choice
from gmtool.classes import ClassSet
from gmtool.config import TrainConfig
from gmtool.console import remark
from gmtool.data.datasets import TrainingData
from gmtool.errors import ConfigError
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.pyramid_decoder import PyramidDecoder
from gmtool_training.data.cache import Readers
from gmtool_training.engine.machine import native_precision
from gmtool_training.method.other_run import TeacherOfOtherRun, load_teacher
from gmtool_training.probe.bank import Bank, View, views_of
from gmtool_training.probe.collect import affordable_views, is_bf16, labeled_bank, unlabeled_bank
from gmtool_training.probe.fit_time import FitPlan, measure_fits, plan_fits
from gmtool_training.probe.head import (
    LINEAR_ROWS,
    Head,
    HiddenOptions,
    Rows,
    affordable_rows,
    device_of_fits,
    fit_hidden,
    fit_linear,
    head_of,
    install,
)
from gmtool_training.probe.judge import choices_of, judge
from gmtool_training.probe.kinds import fit_kinds, kind_to_take
from gmtool_training.probe.pictures import Teaching
from gmtool_training.probe.self_training import (
    FOLDS,
    PARTITIONS,
    Fit,
    folds_of_partitions,
    labeled_rows,
    self_train,
)
from gmtool_training.watch.stages import Stages

LABELED_SHARE = 0.2
"""Share of the time that the features of the labeled images may take; views are left out to stay within it."""
FIT_SHARE = 0.4
"""Share of the time left that is kept for fitting once the features are computed."""


@dataclass(frozen=True)
class ProbeResult:
    """A fitted network and what was measured on the way."""

    steps: int
    """Optimiser steps of one fit of the final classifier."""
    channels: int
    """Width of the hidden layer; 0 if a linear classifier did better."""
    decoders: tuple[PyramidDecoder, ...]
    """Of labels alone, then of each round of self-training; the last one is the network's."""
    choices: tuple[Choice, ...]
    """What was chosen by measurements."""
    teaching: Teaching | None
    """How unlabeled images were, or would have been, labeled; None without any."""


@dataclass(frozen=True)
class FitLimits:
    """Device of the classifiers, and limits of their fits."""

    device: torch.device
    most: int
    """Rows of a linear fit, see `affordable_rows`."""


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
    stages: Stages,
) -> ProbeResult:
    """Fit the decoder of a network whose encoder stays as it is; the network ends in evaluation mode.

    Args:
        network: With pretrained encoder weights; its `input_scale` is already chosen.
        config: The whole run.
        data: Labeled and unlabeled samples.
        classes: The classes.
        read: Readers of their images and masks.
        started: When the run began, `time.monotonic`: choosing the input scale took time too.
        stages: Gets the times.
    """
    probe, random = config.probe, np.random.default_rng(config.run.seed)
    budget = _Budget(probe.minutes, started=started)
    network.eval()
    teacher = _teacher(network, config, classes)
    views, labeled, unlabeled = _banks(
        network, config, data, classes, read, budget=budget, stages=stages, random=random, teacher=teacher
    )
    # The kind of classifier, and whether unlabeled images help it: judged by labeled images kept out of the fit
    with stages("choice of the classifier"):
        device = device_of_fits(network)
        is_native = device.type == "cuda" or native_precision("cpu") == "bf16-mixed"
        options = HiddenOptions(channels=config.model.decoder_channels, bf16=is_bf16(config) and is_native)
        limits = FitLimits(device, affordable_rows(labeled.features[0].shape[1], device))
        plan = _plan(config, options, labeled_rows(labeled, len(classes)), unlabeled, budget, limits)
        folds = folds_of_partitions(labeled, plan.partitions, random)
        kinds = fit_kinds(_fits(plan, options, random, limits), labeled, folds, len(classes))
        kind = kind_to_take(kinds)
        best = judge(kind, labeled, unlabeled, len(classes), probe)
    used = "used" if best.helps else "left out: labels alone"
    remark(
        f"classifier: {kind.name}"
        + ("" if best.taken is None else f"; unlabeled images {used}, {best.taken.gain} points")
    )
    # That classifier on all labels
    with stages("fit"):
        fit = kind.fit
        alone = fit([labeled_rows(labeled, len(classes))], _earlier_head(network, config, kind.name))
        heads, teaching = [alone], None
        if unlabeled is not None and best.taken is not None:
            rounds, pseudo = probe.rounds if best.helps else 0, best.taken.options
            trained = self_train(
                fit,
                labeled,
                unlabeled,
                pseudo,
                rounds=rounds,
                start=alone,
                propagation=plan.propagation,
            )
            heads = trained.heads
            teaching = Teaching.of(trained, teacher, unlabeled, pseudo, views, rounds=probe.rounds)
    decoders = [decoder_of(head, network) for head in heads]
    network.decoder = decoders[-1]
    return ProbeResult(
        steps=plan.steps,
        channels=config.model.decoder_channels if kind.name == "hidden layer" else 0,
        decoders=tuple(decoders),
        choices=choices_of(kinds, best, probe, own=teacher is None),
        teaching=teaching,
    )


def _banks(
    network: GuidedMixNet,
    config: TrainConfig,
    data: TrainingData,
    classes: ClassSet,
    read: Readers,
    *,
    budget: _Budget,
    stages: Stages,
    random: np.random.Generator,
    teacher: TeacherOfOtherRun | None,
) -> tuple[tuple[View, ...], Bank, Bank | None]:
    """Return views, and features of the labeled and, as far as the time goes, of the unlabeled images."""
    probe, count = config.probe, len(data.labeled.samples)
    with stages("features of labeled images"):
        views = affordable_views(
            network, data, read, views_of(probe.scales), LABELED_SHARE * budget.left_s, bf16=is_bf16(config)
        )
        began = time.monotonic()
        labeled = labeled_bank(
            network, data, classes, read, views, pixels=probe.labeled_pixels, config=config, random=random
        )
        seconds = time.monotonic() - began
    remark(f"features of {count} labeled images, {len(views)} views each: {seconds:.0f} s")
    seconds_a_view = seconds / (count * len(views))
    budget.keep(seconds_a_view * len(data.val.samples))  # validation looks at each image once
    if not probe.rounds or not data.unlabeled.samples:
        return views, labeled, None
    with stages("features of unlabeled images"):
        unlabeled = unlabeled_bank(
            network,
            data,
            read,
            views,
            config=config,
            seconds=(1 - FIT_SHARE) * budget.left_s,
            seconds_a_view=seconds_a_view,
            random=random,
            teacher=teacher,
        )
    return views, labeled, unlabeled


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


def _plan(
    config: TrainConfig,
    options: HiddenOptions,
    rows: Rows,
    unlabeled: Bank | None,
    budget: _Budget,
    limits: FitLimits,
) -> FitPlan:
    """Return the kinds of classifiers that settings and time allow, and their steps; say what was left out."""
    probe = config.probe
    has_hidden = options.channels > 0 and probe.head != "linear"
    rounds = 0 if unlabeled is None else probe.rounds
    # A linear fit has no steps to leave out, so that with a time limit it is judged once
    most = PARTITIONS if rounds and (has_hidden or probe.minutes is None) else 1
    has_linear = not has_hidden or probe.head != "hidden"
    own = unlabeled is not None and unlabeled.teacher is None  # labels of another run do not pass on
    whole = FitPlan(has_hidden, has_linear, probe.steps, most, propagation=has_hidden and own and rounds > 1)
    if probe.minutes is None or not has_hidden:
        return whole
    given = [rows] if unlabeled is None else [rows, _any_targets(unlabeled, rows.targets.shape[1])]
    times = measure_fits(given, options, most=limits.most, device=limits.device)
    plan = plan_fits(whole, times, rounds=rounds, seconds=budget.left_s)
    if plan != whole:
        both = " and linear" if plan.linear else ""
        kind = f"hidden layer{both}, {plan.steps} steps a fit" if plan.hidden else "linear"
        judging = f", judged by {plan.partitions} of {most} partitions" if plan.partitions < most else ""
        if whole.propagation and plan.hidden and not plan.propagation:
            judging += ", labels do not pass between unlabeled pixels"
        remark(f"classifier: {kind}{judging}: more does not fit into {budget.left_s:.0f} s")
    return plan


def _any_targets(bank: Bank, num_classes: int) -> Rows:
    """Return unlabeled pixels as rows that take as long to fit as those with pseudo labels."""
    return Rows(bank.features, torch.full((len(bank.labels), num_classes), 1 / num_classes))


def _fits(plan: FitPlan, options: HiddenOptions, random: np.random.Generator, limits: FitLimits) -> dict[str, Fit]:
    """Return the kinds of classifiers of a plan, and what fits one."""
    options, device, most = replace(options, steps=plan.steps), limits.device, limits.most
    every: dict[str, Fit] = {}
    if plan.hidden:
        every["hidden layer"] = lambda rows, start: fit_hidden(
            rows, options=options, random=random, start=start, device=device
        )
    if plan.linear:
        if most < LINEAR_ROWS:
            remark(f"linear classifier: fitted to {2 * most} pixels at most: more do not fit into memory")
        every["linear"] = lambda rows, start: fit_linear(rows, start=start, most=most, device=device)
    return every


def decoder_of(head: Head, network: GuidedMixNet) -> PyramidDecoder:
    """Return a decoder that computes what a head does, on the network's device, in evaluation mode."""
    layers = head.layers
    decoder = PyramidDecoder(
        network.encoder.strides,
        network.encoder.channels,
        channels=layers[0].out_features if len(layers) > 1 else 0,  # type: ignore[arg-type]
        num_classes=layers[-1].out_features,  # type: ignore[arg-type]
    )
    install(head, decoder)
    device = next(network.parameters()).device
    decoder.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return decoder
