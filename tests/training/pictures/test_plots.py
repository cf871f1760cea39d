import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gmtool_training.pictures.curves import draw_training, training_figure
from matplotlib.axes import Axes
from PIL import Image

from gmtool.errors import CheckpointError


def train_event(iteration: int, **changes: Any) -> dict[str, Any]:
    terms = {"loss": 2.0, "ce": 1.0, "cla": 0.4, "dec": 0.3, "usup": 0.1, "omega": 3.0, "lr": 0.01}
    return {"kind": "train", "iteration": iteration, **terms, "images_per_s": 9.0, **changes}


def val_event(iteration: int, miou: float | None) -> dict[str, Any]:
    return {"kind": "val", "iteration": iteration, "miou": miou, "best": miou}


EVENTS = [
    train_event(10, usup=0.0, dec=0.0, omega=0.0, grad_norm=1.5, skipped=None),
    train_event(20),
    val_event(20, 0.5),
    train_event(30, loss=None),
    val_event(40, 0.75),
    val_event(50, 0.6),
]


def drawn(events: list[dict[str, Any]]) -> list[Axes]:
    return training_figure(events, title="run").axes


def lines(panel: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): [float(y) for y in np.asarray(line.get_ydata())] for line in panel.get_lines()}


def test_every_series_is_drawn_over_shared_iterations() -> None:
    losses, miou, rate, omega = drawn(EVENTS)
    named = lines(losses)
    assert list(named) == ["total", "cross-entropy", "image classes", "labeled pairs", "ω · unlabeled"]
    assert named["cross-entropy"] == [1.0, 1.0, 1.0]
    assert named["ω · unlabeled"][1:] == pytest.approx([0.3, 0.3])  # weighted
    assert np.isnan(named["ω · unlabeled"][0])  # off, which a log scale has no place for
    assert list(np.asarray(losses.get_lines()[0].get_xdata())) == [10, 20, 30]
    assert lines(rate).popitem()[1] == [0.01] * 3
    assert lines(omega).popitem()[1] == [0.0, 3.0, 3.0]
    assert losses.get_yscale() == "log"
    assert [panel.get_ylabel() for panel in (miou, rate, omega)] == ["validation mIoU, %", "learning rate", "ω"]
    assert {panel.get_xlim() for panel in (losses, miou, rate, omega)} == {miou.get_xlim()}


def test_best_and_last_score_are_told_in_percent() -> None:
    scores = lines(drawn(EVENTS)[1])
    assert scores == {"last 60.00 %": [50.0, 75.0, 60.0], "best 75.00 % at 40": [75.0]}


def test_an_undefined_value_is_a_gap() -> None:
    losses, miou, *_ = drawn([*EVENTS, val_event(60, None)])
    assert np.isnan(lines(losses)["total"]).tolist() == [False, False, True]
    assert "last: not defined" in lines(miou)


def test_many_events_are_drawn_as_a_running_mean_over_the_single_ones() -> None:
    events = [train_event(10 * (i + 1), ce=1.0 + (-1) ** i * 0.5) for i in range(200)]
    named = lines(drawn(events)[0])
    assert np.ptp(named["cross-entropy"][10:-10]) < 0.01
    assert drawn(events)[0].get_ylabel() == "loss (mean of 4 events)"


@pytest.mark.parametrize("events", [[], EVENTS[:1], EVENTS[2:3], [val_event(0, None)]])
def test_a_run_that_has_hardly_begun_is_drawn(events: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert draw_training(tmp_path).is_file()


def test_half_a_last_line_is_passed_over(tmp_path: Path) -> None:
    whole = "".join(json.dumps(event) + "\n" for event in EVENTS)
    (tmp_path / "metrics.jsonl").write_text(whole + json.dumps(train_event(60))[:30])
    path = draw_training(tmp_path)
    assert path == tmp_path / "training.png"
    with Image.open(path) as image:
        assert image.size == (990, 1100)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl", "training.png"]


def test_a_trained_run_is_drawn(toy_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_bytes((toy_run / "metrics.jsonl").read_bytes())
    with Image.open(draw_training(run_dir)) as image:
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run: expected .*metrics\.jsonl"):
        draw_training(tmp_path)
