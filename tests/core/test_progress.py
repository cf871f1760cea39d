"""Progress fits any terminal, and is a plain line a few times a minute where there is none."""

import io
import time

import pytest
from rich.console import Console

from gmtool import progress
from gmtool.progress import ShownProgress, Status, clock, phase, that_fit, track

FIGURES = (
    "loss 0.523",
    "123 images/s",
    "unlabeled loss 0.0123",
    "cross-entropy 0.412",
    "best mIoU 61.2 %",
    "learning rate 0.00912",
    "unlabeled weight 30",
)


def screen(status: Status, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(status)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_phase_count_bar_time_left_loss_and_speed_are_shown_at_every_width(width: int) -> None:
    status = Status("training", 12345, 40000, left_s=5025.0, figures=FIGURES)
    first, second = screen(status, width)
    assert max(len(first), len(second)) < width
    assert first.startswith("training 12345/40000  ")
    assert first.endswith("1:23:45 left")
    assert ("━" in first) == (width >= 60)
    assert second.startswith("loss 0.523  123 images/s")
    shown = [figure for figure in FIGURES if figure in second]
    assert shown == list(FIGURES[: {40: 2, 60: 3, 80: 4, 120: 6, 200: 7}[width]])


def test_a_narrow_terminal_leaves_the_bar_out_before_count_and_time() -> None:
    first, second = screen(Status("validating", 120, 1449, left_s=59.6), 30)
    assert first == "validating 120/1449  1:00 lef"
    assert second == ""


def test_the_time_left_runs_on_between_two_steps() -> None:
    status = Status("training", 1, 2, left_s=100.0, since=time.monotonic() - 40)
    assert status.time_left() == "1:00 left"
    status.since -= 1000
    assert status.time_left() == "0:00 left"
    assert Status().time_left() == "time left: -"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.4, "0:07"), (754, "12:34"), (3599.7, "1:00:00"), (11525, "3:12:05"), (184_000, "2 d 03:06")],
)
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_texts_that_do_not_fit_are_left_out_from_the_end() -> None:
    assert that_fit(("aaa", "bbb", "c"), 8) == "aaa  bbb"
    assert that_fit(("aaaa",), 3) == ""


def test_off_a_terminal_a_line_comes_only_after_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    with ShownProgress(Status("training", 3, 9, figures=("loss 1.2",)), line_after_s=1000) as shown:
        shown.tell()
        assert capsys.readouterr().err == ""
    with ShownProgress(Status("training", 3, 9, figures=("loss 1.2",)), line_after_s=0) as shown:
        shown.tell()
        assert capsys.readouterr().err == "training 3/9  time left: -  loss 1.2\n"


def test_a_phase_says_its_name_count_and_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.ShownProgress.__init__, "__kwdefaults__", {"line_after_s": 0})
    with phase("labeled images", 4) as update:
        update(0)
        update(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "labeled images 0/4  time left: -"
    assert lines[1].startswith("labeled images 2/4  0:00 left  ")
    assert lines[1].endswith("/s")
    assert list(track(iter("abc"), total=3)) == ["a", "b", "c"]
