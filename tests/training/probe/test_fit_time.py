"""Fits that the time of a probe allows."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from gmtool_training.probe import fit_time
from gmtool_training.probe.bank import Bank
from gmtool_training.probe.fit_time import FitPlan, FitTimes, measure_fits, plan_fits
from gmtool_training.probe.head import CPU, LINEAR_ITERATIONS, HiddenOptions, Rows
from gmtool_training.probe.run import FitLimits, _Budget, _plan

from gmtool.config import DataConfig, ProbeConfig, TrainConfig

TIMES = FitTimes(step=0.02, linear=8.0)
BOTH = FitPlan(hidden=True, linear=True, steps=500)


@pytest.mark.parametrize(
    ("seconds", "rounds", "expected"),
    [
        (float("inf"), 2, BOTH),
        (3 * 8 + 13 * 500 * 0.02, 2, BOTH),  # 154 s: three fits of each kind, ten more of the one that is taken
        (153, 2, FitPlan(hidden=True, linear=False, steps=500)),
        (65, 2, FitPlan(hidden=True, linear=False, steps=250)),
        (1, 2, FitPlan(hidden=True, linear=False, steps=100)),
        (3 * 8 + 4 * 500 * 0.02, 0, BOTH),
        (63, 0, FitPlan(hidden=False, linear=True, steps=500)),
    ],
)
def test_what_does_not_fit_into_the_time_is_left_out(seconds: float, rounds: int, expected: FitPlan) -> None:
    assert plan_fits(BOTH, TIMES, rounds=rounds, seconds=seconds) == expected


def test_the_linear_classifier_is_left_out_first_then_partitions_and_steps() -> None:
    # Nine fits of each kind to judge it three times, 22 more of the hidden layer that is taken
    whole = FitPlan(hidden=True, linear=True, steps=500, partitions=3)
    needed = 9 * 8 + 31 * 10
    assert plan_fits(whole, TIMES, rounds=2, seconds=needed) == whole
    hidden = replace(whole, linear=False)
    for seconds, expected in [
        (needed - 1, hidden),
        (309, replace(hidden, partitions=2)),  # 22 fits
        (219, replace(hidden, partitions=2, steps=497)),
        (89, replace(hidden, partitions=2, steps=202)),
        (87, replace(hidden, partitions=1, steps=334)),  # 13 fits; with two partitions less than 200 steps
        (1, replace(hidden, partitions=1, steps=100)),
    ]:
        assert plan_fits(whole, TIMES, rounds=2, seconds=seconds) == expected


@pytest.mark.parametrize(("minutes", "partitions"), [(1.0, 1), (None, 3)])
def test_a_linear_classifier_alone_is_judged_once_if_the_time_is_limited(
    minutes: float | None, partitions: int
) -> None:
    """Its fits have nothing to leave out: three partitions would take three times the minutes."""
    bank = Bank((torch.zeros(4, 2),), torch.zeros(4, dtype=torch.long), torch.arange(4))
    config = TrainConfig(DataConfig(root=Path()), probe=ProbeConfig(head="linear", minutes=minutes))
    plan = _plan(
        config,
        HiddenOptions(),
        Rows(bank.features, torch.zeros(4, 3)),
        bank,
        _Budget(minutes, started=0.0),
        FitLimits(CPU, most=100),
    )
    assert plan == FitPlan(hidden=False, linear=True, steps=500, partitions=partitions)


def test_what_the_settings_leave_no_choice_about_stays() -> None:
    linear, hidden = FitPlan(hidden=False, linear=True, steps=500), FitPlan(hidden=True, linear=False, steps=500)
    assert plan_fits(linear, TIMES, rounds=2, seconds=1) == linear
    assert plan_fits(hidden, TIMES, rounds=0, seconds=20).steps == 250
    few = FitPlan(hidden=True, linear=True, steps=10)
    assert plan_fits(few, TIMES, rounds=2, seconds=1).steps == 10


def test_the_start_of_a_fit_counts_once() -> None:
    """With 150 000 pixels it takes as long as 60 steps: counted in each, the hidden layer was left out."""
    slow = replace(TIMES, start=2.0)
    assert slow.hidden(500) == 12
    assert plan_fits(BOTH, slow, rounds=2, seconds=3 * 8 + 13 * 12) == BOTH
    assert plan_fits(BOTH, slow, rounds=2, seconds=3 * 8 + 13 * 12 - 1).linear is False
    assert plan_fits(BOTH, slow, rounds=2, seconds=13 * 7).steps == 250
    assert plan_fits(BOTH, slow, rounds=2, seconds=1).steps == 100


def test_probabilities_of_the_unlabeled_pixels_take_time_too() -> None:
    """Six times to judge the kind that is taken, and in each of the two rounds."""
    slow = replace(TIMES, predict=5.0)
    needed = 3 * 8 + 13 * 500 * 0.02 + (6 + 2) * 5
    assert plan_fits(BOTH, slow, rounds=2, seconds=needed) == BOTH
    assert plan_fits(BOTH, slow, rounds=2, seconds=needed - 1).linear is False
    assert plan_fits(BOTH, slow, rounds=0, seconds=3 * 8 + 4 * 500 * 0.02) == BOTH


def test_times_are_of_one_step_and_of_a_whole_linear_fit() -> None:
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).half()
    rows = Rows((features,), torch.eye(3)[torch.arange(200) % 3])
    times = measure_fits([rows, rows], HiddenOptions(channels=4, batch=16), most=100)
    assert 0 < times.step < 1 and 0 < times.linear < 60 and 0 <= times.start < 60
    assert 0 < times.predict < 60 and 0 < times.propagate < 60
    alone = measure_fits([rows], HiddenOptions(channels=4, batch=16), most=100)
    assert alone.predict == alone.propagate == 0


def test_a_step_is_told_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that takes 3 s for the start of a fit, 0.1 s for a step, 0.5 s for an iteration."""
    now = 0.0

    def hidden(rows: object, *, options: HiddenOptions, **_: object) -> None:
        nonlocal now
        now += 3 + 0.1 * options.steps

    def linear(rows: object, *, iterations: int, **_: object) -> None:
        nonlocal now
        now += 3 + 0.5 * iterations

    monkeypatch.setattr(fit_time, "fit_hidden", hidden)
    monkeypatch.setattr(fit_time, "fit_linear", linear)
    monkeypatch.setattr("gmtool_training.probe.fit_time.time.monotonic", lambda: now)
    times = measure_fits([Rows((), torch.empty(0))], HiddenOptions(), most=1)
    assert (times.start, times.step, times.linear) == pytest.approx((3, 0.1, 3 + 0.5 * LINEAR_ITERATIONS))


def test_passing_labels_on_takes_time_once_and_is_left_out_where_it_takes_much() -> None:
    slow = replace(TIMES, propagate=24.0)
    whole = replace(BOTH, propagation=True)
    needed = 3 * 8 + 13 * 500 * 0.02 + 24
    assert plan_fits(whole, slow, rounds=2, seconds=needed) == whole
    assert plan_fits(whole, slow, rounds=2, seconds=needed - 1) == replace(whole, linear=False)
    assert plan_fits(whole, slow, rounds=2, seconds=160) == replace(whole, linear=False)
    # More than 15 % of the time
    assert plan_fits(whole, slow, rounds=2, seconds=159) == BOTH
    assert plan_fits(BOTH, slow, rounds=2, seconds=3 * 8 + 13 * 500 * 0.02) == BOTH


def test_the_slower_kind_may_be_the_one_that_is_taken() -> None:
    slow = replace(TIMES, linear=12.0)
    needed = 3 * (12 + 10) + 10 * 12
    assert plan_fits(BOTH, slow, rounds=2, seconds=needed) == BOTH
    assert plan_fits(BOTH, slow, rounds=2, seconds=needed - 1) == replace(BOTH, linear=False)


@pytest.mark.parametrize(
    ("rounds", "head", "taught", "expected"),
    [(4, "auto", False, True), (1, "auto", False, False), (4, "linear", False, False), (4, "auto", True, False)],
)
def test_labels_pass_on_before_several_rounds_of_the_probes_own(
    rounds: int, head: Literal["auto", "linear"], taught: bool, expected: bool
) -> None:
    teacher = torch.full((4, 3), 1 / 3) if taught else None
    bank = Bank((torch.zeros(4, 2),), torch.zeros(4, dtype=torch.long), torch.arange(4), teacher)
    config = TrainConfig(DataConfig(root=Path()), probe=ProbeConfig(head=head, rounds=rounds))
    rows, limits = Rows(bank.features, torch.zeros(4, 3)), FitLimits(CPU, most=100)
    plan = _plan(config, HiddenOptions(), rows, bank, _Budget(None, started=0.0), limits)
    assert plan.propagation is expected


def test_that_labels_do_not_pass_on_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gmtool_training.probe.run.measure_fits", lambda *_, **__: replace(TIMES, propagate=1e4))
    bank = Bank((torch.zeros(4, 2),), torch.zeros(4, dtype=torch.long), torch.arange(4))
    config = TrainConfig(DataConfig(root=Path()), probe=ProbeConfig(minutes=10.0))
    rows, limits = Rows(bank.features, torch.zeros(4, 3)), FitLimits(CPU, most=100)
    plan = _plan(config, HiddenOptions(), rows, bank, _Budget(10.0, started=time.monotonic()), limits)
    assert not plan.propagation
    assert capsys.readouterr().err.startswith(
        "classifier: hidden layer and linear, 500 steps a fit, labels do not pass between unlabeled pixels: "
    )
