"""Fits that the time of a probe allows."""

import pytest
import torch
from gmtool_training.probe.fit_time import FitPlan, FitTimes, measure_fits, plan_fits
from gmtool_training.probe.head import HiddenOptions, Rows

TIMES = FitTimes(step=0.02, linear=8.0)
BOTH = FitPlan(hidden=True, linear=True, steps=500)


@pytest.mark.parametrize(
    ("seconds", "rounds", "expected"),
    [
        (float("inf"), 2, BOTH),
        (9 * 8 + 13 * 500 * 0.02, 2, BOTH),  # 202 s: nine fits of each kind, four more of the one that is taken
        (201, 2, FitPlan(hidden=True, linear=False, steps=500)),
        (65, 2, FitPlan(hidden=True, linear=False, steps=250)),
        (1, 2, FitPlan(hidden=True, linear=False, steps=100)),
        (3 * 8 + 4 * 500 * 0.02, 0, BOTH),
        (63, 0, FitPlan(hidden=False, linear=True, steps=500)),
    ],
)
def test_what_does_not_fit_into_the_time_is_left_out(seconds: float, rounds: int, expected: FitPlan) -> None:
    assert plan_fits(BOTH, TIMES, rounds=rounds, seconds=seconds) == expected


def test_what_the_settings_leave_no_choice_about_stays() -> None:
    linear, hidden = FitPlan(hidden=False, linear=True, steps=500), FitPlan(hidden=True, linear=False, steps=500)
    assert plan_fits(linear, TIMES, rounds=2, seconds=1) == linear
    assert plan_fits(hidden, TIMES, rounds=0, seconds=20).steps == 250
    few = FitPlan(hidden=True, linear=True, steps=10)
    assert plan_fits(few, TIMES, rounds=2, seconds=1).steps == 10


def test_times_are_of_one_step_and_of_a_whole_linear_fit() -> None:
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).half()
    times = measure_fits(
        Rows((features,), torch.eye(3)[torch.arange(200) % 3]), HiddenOptions(channels=4, batch=16), most=100
    )
    assert 0 < times.step < 1 and 0 < times.linear < 60
