"""Fits that the time allows: one kind of classifier instead of two, then fewer steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from gmtool_training.probe.head import (
    CPU,
    LINEAR_ITERATIONS,
    HiddenOptions,
    Rows,
    fit_hidden,
    fit_linear,
)
from gmtool_training.probe.self_training import FOLDS, PARTS

LEAST_STEPS = 100
"""Steps of a hidden layer's fit, at least."""
TRIAL_STEPS = 20
TRIAL_ITERATIONS = 3


@dataclass(frozen=True)
class FitTimes:
    """Measured seconds."""

    step: float
    """Of a hidden layer's fit."""
    linear: float
    """Of a whole linear fit."""


@dataclass(frozen=True)
class FitPlan:
    """Kinds of classifiers that are fitted, and how long."""

    hidden: bool
    linear: bool
    steps: int
    """Of a hidden layer."""


def measure_fits(rows: Rows, options: HiddenOptions, *, most: int, device: torch.device = CPU) -> FitTimes:
    """Time a step of each kind of fit on these rows, of which a linear one takes `most`."""
    random = np.random.default_rng(0)
    if device.type == "cuda":  # the first steps load kernels
        fit_hidden([rows], options=replace(options, steps=TRIAL_STEPS), random=random, device=device)
        fit_linear([rows], iterations=TRIAL_ITERATIONS, most=most, device=device)
    started = time.monotonic()
    fit_hidden([rows], options=replace(options, steps=TRIAL_STEPS), random=random, device=device)
    step = (time.monotonic() - started) / TRIAL_STEPS
    started = time.monotonic()
    fit_linear([rows], iterations=TRIAL_ITERATIONS, most=most, device=device)
    return FitTimes(step, (time.monotonic() - started) / TRIAL_ITERATIONS * LINEAR_ITERATIONS)


def plan_fits(whole: FitPlan, times: FitTimes, *, rounds: int, seconds: float) -> FitPlan:
    """Return what fits into `seconds`.

    Each kind is judged by `FOLDS` fits, and as many for each of two ways to choose pseudo labels. The one that
    is taken is fitted once more, and in each round: in the last one to all unlabeled images, before it once for
    each part of them. Self-training gains most with a hidden layer; labels alone are as well off with a linear
    classifier, which takes less.

    Args:
        whole: Everything that the settings ask for.
        times: Of this machine.
        rounds: Rounds of self-training; 0 without unlabeled images.
        seconds: What is left.
    """
    if not whole.hidden:  # a linear fit has nothing to leave out
        return whole
    judging = FOLDS * (3 if rounds else 1)
    fits = judging + 1 + (PARTS * (rounds - 1) + 1 if rounds else 0)
    of_linear = judging * times.linear if whole.linear else 0.0
    if of_linear + fits * whole.steps * times.step <= seconds:
        return whole
    if not rounds and whole.linear:
        return replace(whole, hidden=False)
    steps = min(whole.steps, int(seconds / (fits * times.step)))
    return replace(whole, linear=False, steps=max(min(LEAST_STEPS, whole.steps), steps))
