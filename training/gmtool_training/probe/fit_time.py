"""Fits that the time allows: one kind of classifier instead of two, then fewer steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from gmtool_training.probe.head import (
    CPU,
    LINEAR_ITERATIONS,
    Head,
    HiddenOptions,
    Rows,
    fit_hidden,
    fit_linear,
)
from gmtool_training.probe.propagation import seconds_to_propagate
from gmtool_training.probe.self_training import FOLDS, PARTS

LEAST_STEPS = 100
"""Steps of a hidden layer's fit, at least."""
ENOUGH_STEPS = 200
"""Steps of a fit that are given up for a second partition: with one, unlabeled images can be left out by chance,
which costs more than steps."""
PROPAGATION_SHARE = 0.15
"""Share of the time that passing labels between unlabeled pixels may take; it grows with their number alone."""
TRIAL_STEPS = 5, 25
TRIAL_ITERATIONS = 2, 6
"""Lengths of two trials. Their difference tells the time of a step: with many pixels the start of a fit takes as
long as dozens of steps."""
TRIAL_ROWS = 8192
"""Rows whose probabilities are timed."""


@dataclass(frozen=True)
class FitTimes:
    """Measured seconds."""

    step: float
    """Of a step of a hidden layer's fit."""
    linear: float
    """Of a whole linear fit."""
    start: float = 0.0
    """Of a hidden layer's fit before its first step."""
    predict: float = 0.0
    """Of a classifier's probabilities for all unlabeled pixels."""
    propagate: float = 0.0
    """Of passing labels between all unlabeled pixels."""

    def hidden(self, steps: int) -> float:
        """Return the time of a hidden layer's fit."""
        return self.start + steps * self.step


@dataclass(frozen=True)
class FitPlan:
    """Kinds of classifiers that are fitted, and how long."""

    hidden: bool
    linear: bool
    steps: int
    """Of a hidden layer."""
    partitions: int = 1
    """Ways to part the labeled images that classifiers are judged by."""
    propagation: bool = False
    """Whether labels pass between unlabeled pixels before the first round of self-training."""


def measure_fits(
    rows: Sequence[Rows], options: HiddenOptions, *, most: int, device: torch.device = CPU
) -> FitTimes:
    """Time each kind of fit on labeled and, if there are any, unlabeled rows; a linear one takes `most`."""

    def hidden(steps: int) -> Head:
        random = np.random.default_rng(0)
        return fit_hidden(rows, options=replace(options, steps=steps), random=random, device=device)

    def linear(iterations: int) -> None:
        fit_linear(rows, iterations=iterations, most=most, device=device)

    start, step = _start_and_step(hidden, TRIAL_STEPS, on_card=device.type == "cuda")
    linear_start, iteration = _start_and_step(linear, TRIAL_ITERATIONS, on_card=device.type == "cuda")
    predict = propagation = 0.0
    if len(rows) > 1:
        labeled, unlabeled = rows
        head = hidden(1)
        if device.type == "cuda":  # the first calls load kernels, and what some rows take is multiplied
            _seconds_to_predict(head, unlabeled)
            seconds_to_propagate(head, labeled.features[0], unlabeled.features[0])
        predict = _seconds_to_predict(head, unlabeled)
        propagation = seconds_to_propagate(head, labeled.features[0], unlabeled.features[0])
    return FitTimes(step, linear_start + iteration * LINEAR_ITERATIONS, start, predict, propagation)


def _seconds_to_predict(head: Head, rows: Rows) -> float:
    """Return the time of all probabilities, from those of some rows."""
    count = len(rows.targets)
    some = torch.arange(min(count, TRIAL_ROWS))
    return _seconds(lambda _: head.probabilities(rows.features, some), 0) * count / len(some)


def _start_and_step(
    fit: Callable[[int], object], lengths: tuple[int, int], *, on_card: bool
) -> tuple[float, float]:
    """Return the seconds of a fit before its first step, and of a step."""
    few, many = lengths
    if on_card:  # the first steps load kernels
        fit(few)
    short, long = _seconds(fit, few), _seconds(fit, many)
    # A machine that is busy during the first trial alone must not make steps free
    step = max(long - short, 0.1 * long) / (many - few)
    return max(0.0, long - many * step), step


def _seconds(fit: Callable[[int], object], length: int) -> float:
    started = time.monotonic()
    fit(length)
    return time.monotonic() - started


def plan_fits(whole: FitPlan, times: FitTimes, *, rounds: int, seconds: float) -> FitPlan:
    """Return what fits into `seconds`.

    Each kind is fitted to labels alone, `FOLDS` times for each partition. The one that is taken is fitted as often
    for each of two ways to choose pseudo labels, then once to all labels, and in each round: in the last one to
    all unlabeled images, before it once for each part of them. Self-training gains most with a hidden layer;
    labels alone are as well off with a linear classifier, which takes less. So that one is left out first, then a
    third partition, then steps down to `ENOUGH_STEPS`, then the second partition, then more steps; passing labels
    on only if it takes more than `PROPAGATION_SHARE`.

    Args:
        whole: Everything that the settings ask for.
        times: Of this machine.
        rounds: Rounds of self-training; 0 without unlabeled images.
        seconds: What is left.
    """
    if not whole.hidden:  # a linear fit has nothing to leave out
        return whole
    if times.propagate > PROPAGATION_SHARE * seconds:
        whole = replace(whole, propagation=False)
    without_linear = replace(whole, linear=False)
    several = range(whole.partitions, min(2, whole.partitions) - 1, -1)
    for plan in [whole, *(replace(without_linear, partitions=count) for count in several)] if rounds else [whole]:
        if _seconds_of(plan, times, rounds=rounds) <= seconds:
            return plan
    if not rounds and whole.linear:
        return replace(whole, hidden=False)
    fewest = replace(without_linear, partitions=several[-1])
    if (steps := _steps_within(fewest, times, rounds=rounds, seconds=seconds)) >= min(ENOUGH_STEPS, whole.steps):
        return replace(fewest, steps=steps)
    least = replace(without_linear, partitions=1)
    steps = _steps_within(least, times, rounds=rounds, seconds=seconds)
    return replace(least, steps=max(min(LEAST_STEPS, whole.steps), steps))


def _steps_within(plan: FitPlan, times: FitTimes, *, rounds: int, seconds: float) -> int:
    """Return the steps a fit, up to those of a plan, with which it takes `seconds`; not above zero if none."""
    free = _seconds_of(replace(plan, steps=0), times, rounds=rounds)
    return min(plan.steps, int((seconds - free) / (times.step * _fits_of(plan, rounds=rounds))))


def _fits_of(plan: FitPlan, *, rounds: int) -> int:
    """Return the fits of a hidden layer that is taken."""
    return plan.partitions * FOLDS + _later_fits(plan, rounds=rounds)


def _later_fits(plan: FitPlan, *, rounds: int) -> int:
    """Return the fits of the kind that is taken, after those to labels alone that judge it."""
    if not rounds:
        return 1
    return 2 * plan.partitions * FOLDS + 1 + PARTS * (rounds - 1) + 1


def _seconds_of(plan: FitPlan, times: FitTimes, *, rounds: int) -> float:
    """Return the time of a plan's fits, of the unlabeled pixels' probabilities, and of passing labels on once.

    Any kind may be the one that is taken: the slower one counts.
    """
    kinds = [times.hidden(plan.steps), *([times.linear] if plan.linear else [])]
    alone = plan.partitions * FOLDS * sum(kinds)
    later = _later_fits(plan, rounds=rounds) * max(kinds)
    # For each way and part of the labels, and in each round
    predictions = (2 * FOLDS * plan.partitions + rounds) * times.predict if rounds else 0.0
    return alone + later + predictions + (times.propagate if plan.propagation else 0.0)
