"""Time left and figures of a training run, as a person sees them."""

from pathlib import Path

import pytest
from gmtool_training.watch.display import STOPPING, TrainingDisplay, figure_texts
from gmtool_training.watch.log import RunLog
from gmtool_training.watch.time_left import TimeLeft

from gmtool.artifact.run_record import read_events


def estimate(**changes: float) -> TimeLeft:
    settings = {"iterations": 100, "unlabeled_from": 20, "validations": 5, "unlabeled_cost": 3.0} | changes
    return TimeLeft(**settings)  # type: ignore[arg-type]


def test_steps_with_unlabeled_images_cost_more_before_one_is_measured_and_what_they_took_after() -> None:
    left = estimate()
    assert left.seconds(0) is None
    left.add_step(1, 9.0)  # the first step starts everything
    left.add_step(2, 1.0)
    assert left.seconds(2) == pytest.approx(18 * 1.0 + 80 * 3.0)
    for done in range(3, 21):
        left.add_step(done, 1.0)
    left.add_step(21, 5.0)
    assert left.seconds(21) == pytest.approx(79 * 5.0)


def test_a_step_for_which_the_network_is_compiled_again_does_not_count_for_all() -> None:
    """One that took 52 s instead of 0.4 announced six days."""
    left = estimate()
    for done in range(1, 21):
        left.add_step(done, 0.2)
    left.add_step(21, 52.0)
    assert left.seconds(21) == pytest.approx(79 * 3 * 0.6)
    left.add_step(22, 0.5)
    assert left.seconds(22) == pytest.approx(78 * 0.5)


def test_validations_are_in_the_estimate_and_the_last_one_takes_all_images() -> None:
    left = estimate(validation_cost=4.0, whole_cost=10.0)
    for done in range(1, 11):
        left.add_step(done, 0.5)
    steps = 10 * 0.5 + 80 * 1.5
    assert left.seconds(10) == pytest.approx(steps + (5 + 9) * 4.0 * 0.5)
    left.add_validation(6.0)
    assert left.seconds(10) == pytest.approx(steps + (5 + 9) * 6.0)
    assert left.seconds(99) == pytest.approx(1.5 + (1 + 9) * 6.0)
    assert left.seconds(100) == 0


def test_a_run_resumed_among_unlabeled_images_knows_its_time() -> None:
    left = estimate()
    left.add_step(51, 8.0)
    left.add_step(52, 2.0)
    assert left.seconds(52) == pytest.approx(48 * 2.0)


def test_figures_have_words_that_practitioners_know() -> None:
    figures = {
        "usup": 0.0123,
        "loss": 0.5,
        "images_per_s": 12.34,
        "dec": 0.0,
        "skipped": 0,
        "best": 0.612,
        "lr": None,
    }
    assert figure_texts(figures) == (
        "loss 0.5",
        "12.3 images/s",
        "unlabeled loss 0.0123",
        "best mIoU 61.2 %",
        "learning rate -",
    )


def test_validation_has_a_bar_of_its_own_and_training_comes_back() -> None:
    display = TrainingDisplay(iterations=100)
    status = display._status
    display.step(40)
    display.show({"loss": 0.5})
    with display.validating(12) as update:
        update(7)
        assert status.count() == "validating 7/12"
        assert status.figures == ("iteration 40/100", "loss 0.5")
    assert status.count() == "training 40/100"
    assert list(status.figures) == ["loss 0.5"]


def test_a_stop_is_shown_until_the_end() -> None:
    display = TrainingDisplay(iterations=100)
    display.stopping()
    display.show({"loss": 0.5})
    assert display._status.figures == (STOPPING,)
    with display.validating(3):
        pass
    assert display._status.figures == (STOPPING,)


def test_a_run_of_hours_on_a_processor_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    for on_processor, seconds, expected in ((True, 1e6, 1), (True, 10.0, 0), (False, 1e6, 0)):
        left = estimate()
        left.seconds = lambda done, seconds=seconds: seconds  # type: ignore[method-assign,misc]
        display = TrainingDisplay(iterations=100, time_left=left, on_processor=on_processor)
        for done in range(1, 20):
            display.step(done)
        assert capsys.readouterr().err.count("this run takes about 278 hours on this processor") == expected


def test_the_time_of_a_resumed_run_goes_on_where_its_kept_steps_ended(tmp_path: Path) -> None:
    earlier = [f'{{"kind": "train", "iteration": {step}, "seconds": {100 * step}}}' for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(earlier) + "\n")
    with RunLog(tmp_path, iterations=9, start=2) as log:
        log.event("train", 3, {"loss": 1.0})
    assert log.earlier_s == 200.0
    assert 200.0 <= read_events(tmp_path)[-1]["seconds"] < 260.0
