"""Cross-validation of `gmtool train --folds`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from conftest import SMALL, Cli
from gmtool_training.loop.finish import RunResult

from gmtool.api import training
from gmtool.api.cross_validation import CrossValidation
from gmtool.classes import ClassSet, voc_palette
from gmtool.data.splits import read_split
from gmtool.report.report import IoUReport, Provenance


def report_of(matrix: Any) -> IoUReport:
    classes = ClassSet(("a", "b", "c"), voc_palette(3), (0, 1, 2))
    origin = Provenance("val", "0", "model", None, "torch", "fp32")
    return IoUReport(np.array(matrix, dtype=np.int64), classes, 2, (), origin)


def test_the_table_has_means_and_students_intervals_over_folds() -> None:
    folds = (
        [[3, 1, 0], [0, 4, 0], [0, 0, 0]],
        [[4, 0, 0], [2, 2, 0], [0, 0, 0]],
        [[8, 0, 0], [0, 0, 0], [0, 2, 2]],
    )
    value = CrossValidation(Path("x"), tuple(map(report_of, folds))).to_dict()
    a, b, c = value["classes"]
    assert a["by_fold"] == [3 / 4, 4 / 6, 1.0] and b["by_fold"] == [4 / 5, 2 / 4, 0.0]
    assert c["by_fold"] == [None, None, 0.5] and (c["mean"], c["interval"]) == (0.5, None)
    assert a["together"] == 15 / 18
    expected = scipy.stats.ttest_1samp([3 / 4, 4 / 6, 1.0], 0).confidence_interval(0.95)
    np.testing.assert_allclose(a["interval"], np.clip(expected, 0, 1))
    assert b["interval"][0] == 0.0  # not below
    assert value["miou"]["together"] == pytest.approx((15 / 18 + 6 / 11 + 2 / 4) / 3)


def test_every_label_is_kept_out_of_one_fit(
    cli: Cli, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists, options and table; the fits themselves are those of `train`."""
    seen: list[tuple[set[str], set[str], dict[str, Any]]] = []

    def fit(kind: str | None, *, labels: Path, val: Path, out: Path, **options: Any) -> RunResult:
        fitted, held = ({entry.name for entry in read_split(path)} for path in (labels, val))
        seen.append((fitted, held, options))
        return RunResult(out, report_of(np.eye(3)), 1.0)

    monkeypatch.setattr(training, "train", fit)
    line = ["train", "voc", "--data", toy_data, "--classes", toy_data / "classes.json", "--folds", 4, "--seed", 3]
    line += ["--labels", toy_data / "splits/labeled.txt", "--recipe", "probe", "--out", tmp_path / "cv"]
    code, out, err = cli([*line, *(f"--set={name}={SMALL[name]}" for name in ("data.crop_px", "data.workers"))])
    assert code == 0, err
    labeled = {entry.name for entry in read_split(toy_data / "splits/labeled.txt")}
    assert len(seen) == 4
    assert all(fitted | held == labeled and not fitted & held and len(held) == 2 for fitted, held, _ in seen)
    assert set.union(*(held for _, held, _ in seen)) == labeled
    assert all((options["seed"], options["recipe"]) == (3, "probe") for *_, options in seen)
    assert "# mIoU 100.00 % in 4 folds of 8 labeled images" in out and "| mean | 100.00 | 100.00 |" in out
    assert json.loads((tmp_path / "cv/cross_validation.json").read_text())["folds"] == 4
    code, _, err = cli([*line[:-1], tmp_path / "other", "--init", toy_data])
    assert code == 2 and "--init is of one run, --folds trains several" in err
