"""Page of a training run, its charts, and runs side by side."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from PIL import Image

from gmtool.artifact.checkpoints import read_sealed, sealed
from gmtool.artifact.describe import describe
from gmtool.artifact.run_record import RunRecord, read_events, read_record, save_record
from gmtool.report.charts import HEIGHT, MAX_POINTS, WIDTH, Line, chart, spark
from gmtool.report.run_page import changed_settings
from gmtool.report.runs import different_settings, find_runs, read_run
from gmtool.settings import load_config


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_a_run_has_a_page_with_all_that_is_known(toy_run: Path) -> None:
    page = (toy_run / "report.html").read_text(encoding="utf-8")
    report = json.loads((toy_run / "report.json").read_text())
    record = read_record(toy_run)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for part in (
        f"{100 * report['miou']:.2f} %",
        f"best {100 * report['best']['miou']:.2f} % at iteration {report['best']['iteration']}",
        "labeled images 8 of",
        "unlabeled images 12",
        "validation images 4 of",
        "64x48 (median)",
        "validation mIoU",
        "unlabeled loss",
        "labeled pair loss",
        "Worst validation images",
        "Unlabeled images",
        f"gmtool export {toy_run}",
        f"gmtool train --resume {toy_run} --iterations N",
        "model.decoder_channels 32 512",
        *record.versions,
    ):
        assert part in text, part
    for row in report["classes"]:
        assert row["name"] in text
    assert page.count("mistakes of toy_") == 4, "all four validation images are the worst four"
    assert page.count("ground truth of toy_") == 4 + 4, "and four labeled ones"
    assert 'src="http' not in page and "<script" not in page
    assert record.seconds > 0 and record.memory_bytes


def test_the_worst_images_of_the_page_are_those_of_the_scores(
    toy_run: Path, toy_data: Path, toy_model: Path
) -> None:
    """Scored once more, by ONNX Runtime."""
    from gmtool.api.evaluation import evaluate

    page = (toy_run / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r"<h3>(toy_\d+)</h3><span class=\"label\">mIoU ([\d.]+) %", page)
    images = evaluate(toy_model, device="cpu").images
    assert images is not None
    scored = {name: 100 * miou for name, miou in zip(images.ids, images.miou, strict=True)}
    assert [float(miou) for _, miou in shown] == sorted(float(miou) for _, miou in shown)
    for name, miou in shown:
        assert float(miou) == pytest.approx(scored[name], abs=1.0), "best weights there, last ones here"


def test_the_report_says_how_masks_are_read_and_with_what(toy_run: Path) -> None:
    text = (toy_run / "report.md").read_text()
    assert "- ground truth: class indices (data.mask_values=index)" in text
    assert "not said" not in text
    assert "torch " in text.splitlines()[-1]


def test_info_says_what_is_known_of_a_run(toy_run: Path, tmp_path: Path) -> None:
    facts = describe(toy_run).facts
    assert facts["data"] == "8 labeled, 12 unlabeled, 4 validation images"
    assert "of memory" in facts["trained"]
    assert "output stride 8" in facts["network"]
    shutil.copytree(toy_run, tmp_path / "run")
    (tmp_path / "run/run.json").write_text("{")
    assert "data" not in describe(tmp_path / "run").facts
    assert "started" in facts


def test_a_record_round_trips(tmp_path: Path) -> None:
    record = RunRecord("toy", "plus", ("because",), 1, 2, 3, "4x5", "today", 1.5, 7, None, ("torch 2",))
    save_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert read_record(tmp_path / "nothing") == RunRecord()


def test_a_chart_spans_its_box_and_breaks_at_gaps() -> None:
    drawn = chart("loss", [Line("a", np.array([1.0, 2, 3, 5]), np.array([4.0, 2, math.nan, 0]))], unit=" %")
    assert drawn is not None
    ((name, _, path),) = drawn.paths
    assert (name, drawn.low, drawn.high, drawn.first, drawn.last) == ("a", "0 %", "4 %", "1", "5")
    assert points(path) == [(0.0, 4.0), (150.0, HEIGHT / 2), (WIDTH, HEIGHT - 4)]
    assert path.count("M") == 2
    assert chart("nothing", [Line("a", np.array([1.0]), np.array([math.nan]))]) is None


def test_a_logarithmic_chart_leaves_out_what_is_not_above_zero() -> None:
    drawn = chart("loss", [Line("a", np.arange(4.0), np.array([0.0, 0.001, 0.1, 10]))], log=True)
    assert drawn is not None
    assert (drawn.low, drawn.high) == ("0.001", "10")
    heights = [y for _, y in points(drawn.paths[0][2])]
    assert heights == [HEIGHT - 4, HEIGHT / 2, 4.0]


def test_long_lines_are_thinned_and_short_ones_are_visible() -> None:
    drawn = chart("loss", [Line("a", np.arange(10_000.0), np.ones(10_000))])
    assert drawn is not None
    assert len(points(drawn.paths[0][2])) == MAX_POINTS
    assert spark([0.5]) == "M0.0 12.0h.1"
    assert points(spark([0.0, None, 1.0])) == [(0.0, 20.0), (100.0, 4.0)]


def test_settings_that_differ_from_the_defaults_are_listed(toy_run: Path) -> None:
    rows = {
        name: (value, default) for name, value, default in changed_settings(load_config(toy_run / "config.toml"))
    }
    assert rows["optim.iterations"] == ("60", "40000")
    assert "data.root" not in rows and "optim.momentum" not in rows


@pytest.fixture
def several(toy_run: Path, tmp_path: Path) -> Path:
    """Two runs, one of them stopped, and a folder that is none."""
    shutil.copytree(toy_run, tmp_path / "a")
    shutil.copytree(toy_run, tmp_path / "deep/b", ignore=shutil.ignore_patterns("report.*", "run.json"))
    config = tmp_path / "deep/b/config.toml"
    config.write_text(config.read_text().replace("iterations = 60", "iterations = 70"))
    (tmp_path / "other").mkdir()
    return tmp_path


def test_runs_below_a_folder_are_a_table(several: Path, cli: Cli) -> None:
    assert find_runs(several) == [several / "a", several / "deep/b"]
    code, out, err = cli(["runs", several])
    assert (code, err) == (0, "")
    header, first, second = out.splitlines()
    assert header.split() == [
        "run",
        "recipe",
        "data",
        "labeled",
        "unlabeled",
        "iteration",
        "last",
        "%",
        "best",
        "%",
        "time",
    ]
    assert re.match(r"a +guidedmix +voc: toy-data +8 +12 +60 +\d", first)
    assert re.match(r"deep/b +guidedmix +voc: toy-data +- +- +60/70 +\d", second)
    code, out, _ = cli(["runs", several, "--json"])
    rows = json.loads(out)
    assert [row["finished"] for row in rows] == [True, False]
    report = json.loads((several / "a/report.json").read_text())
    assert rows[0]["last"] == report["miou"]
    checkpoint = several / "deep/b/checkpoints/last.json"  # saved between two validations
    checkpoint.write_text(sealed(read_sealed(checkpoint) | {"miou": None}))
    assert read_run(several / "deep/b").last == report["miou"]


def test_two_runs_are_compared_by_settings_and_curves(several: Path, cli: Cli) -> None:
    code, out, err = cli(["runs", several / "a", several / "deep/b"])
    assert code == 0, err
    assert re.search(r"^optim.iterations +60 +70 *$", out, re.MULTILINE)
    assert err == f"curves: {several / 'comparison.png'}\n"
    assert min(Image.open(several / "comparison.png").size) > 500
    code, out, _ = cli(["runs", several / "a", several / "deep/b", "--json", "--picture", several / "x.png"])
    value = json.loads(out)
    assert value["differences"] == {str(several / "deep/b"): {"optim.iterations": [60, 70]}}
    assert (several / "x.png").is_file()
    config = load_config(several / "a/config.toml")
    assert different_settings(config, config) == []


def test_what_is_no_run_is_one_line(several: Path, cli: Cli) -> None:
    for arguments, said in (
        (["runs", several / "nothing"], "does not exist"),
        (["runs", several / "other"], "no run in"),
        (["runs", several / "a", several / "other"], "config.toml"),
        (["runs", several, "--picture", "x.png"], "--picture compares runs: name two or more"),
    ):
        code, out, err = cli(arguments)
        assert code in (1, 2) and out == ""
        assert err.startswith("error: ") and said in err and err.count("\n") == 1
    (several / "a/config.toml").write_text("[")
    code, out, err = cli(["runs", several])
    assert code == 0 and "deep/b" in out and err.startswith("warning: ")


def test_half_a_line_of_a_killed_process_is_no_event(several: Path) -> None:
    with (several / "a/metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "itera')
    events = read_events(several / "a")
    assert len(events) == len(read_events(several / "deep/b"))
    assert read_run(several / "deep/b").seconds == max(event["seconds"] for event in events)
