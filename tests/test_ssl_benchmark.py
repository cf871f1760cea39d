"""Comparison of recipes: statistics, cost of a step, resumed matrix."""

import json
import runpy
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.engine.average import averaged_copy
from gmtool_training.method.step import StepInput, guidedmix_step, supervised_step
from gmtool_training.recipes.configure import configure
from gmtool_training.recipes.recipes import RECIPES
from scipy.stats import ttest_rel

from gmtool.classes import load_classes
from gmtool.config import DataConfig, MethodConfig, ModelConfig
from gmtool.nn.checkpoint import build_network

PROGRAM = Path(__file__).parent.parent / "benchmarks" / "ssl" / "compare.py"


@pytest.fixture(scope="module")
def ssl() -> Any:
    sys.modules["ssl_benchmark"] = module = SimpleNamespace()  # type: ignore[assignment]
    module.__dict__.update(runpy.run_path(str(PROGRAM), run_name="ssl_benchmark"))
    return module


def scores(ssl: Any, **values: list[float]) -> list[Any]:
    return [
        ssl.Score(name, "split", seed, last, last + 1, 10, 3, 60.0, "0" * 64)
        for name, lasts in values.items()
        for seed, last in enumerate(lasts)
    ]


def test_the_interval_is_that_of_a_paired_t_test(ssl: Any) -> None:
    base, ours = [40.0, 44.0, 41.0], [43.0, 45.5, 45.0]
    row = ssl.summary(
        "ours", scores(ssl, supervised=base, ours=ours, **{ssl.ALL_LABELS: [50.0] * 3}), "supervised"
    )
    expected = ttest_rel(ours, base).confidence_interval(0.95)
    assert row["difference"] - row["interval"] == pytest.approx(expected.low)
    assert row["difference"] + row["interval"] == pytest.approx(expected.high)
    assert row["gap_closed"] == pytest.approx((sum(ours) - sum(base)) / (150 - sum(base)))
    assert row["pairs"] == 3


def test_pairs_are_of_one_split_and_seed_alone(ssl: Any) -> None:
    row = ssl.summary("ours", scores(ssl, supervised=[40.0], ours=[41.0, 90.0]), "supervised")
    assert (row["pairs"], row["difference"], row["interval"]) == (1, 1.0, None)


def test_a_matrix_is_trained_once_and_reported(
    ssl: Any, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = tmp_path / "variants.toml"
    variants.write_text('[short]\nrecipe = "supervised"\n"method.classification" = false\n')
    out = tmp_path / "out"
    options = ["voc", "--data", toy_data, "--classes", toy_data / "classes.json"]
    options += ["--labels", toy_data / "splits/labeled.txt", "--encoder-weights", "none", "--recipes"]
    options += ["--variants", variants, "--seeds", "0", "--budget", "12", "--out", out, "--against", "short"]
    settings = ["model.encoder=toy", "data.crop_px=32", "data.labeled_batch=4", "data.workers=0"]
    settings += ["model.decoder_channels=16", "run.device=cpu", "run.validations=1"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, options), "--set", *settings])
    ssl.main()
    value = json.loads((out / "ssl.json").read_text())
    assert [cell["iterations"] for cell in value["cells"]] == [4]
    report = out / "split/short/seed-0/report.json"
    assert value["cells"][0]["last"] == pytest.approx(100 * json.loads(report.read_text())["miou"])
    written = report.stat().st_mtime_ns
    ssl.main()
    assert report.stat().st_mtime_ns == written, "finished cells stay"
    assert "1 cells, 1 done" in capsys.readouterr().err
    assert (out / "ssl.png").stat().st_size > 1000
    assert "| short | 1 | 4 | 3 |" in (out / "ssl.md").read_text()


def test_every_ablation_is_a_configuration_that_differs_from_its_recipe(ssl: Any, tmp_path: Path) -> None:
    tables = tomllib.loads((PROGRAM.parent / "paper_ablations.toml").read_text())
    assert len(tables) >= 8
    for variant, table in tables.items():
        settings = {key: value for key, value in table.items() if key != "recipe"}
        asked = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        flags = {"data.root": tmp_path}
        plain = configure("voc", flags, recipe_name=table["recipe"])
        changed = configure("voc", flags, recipe_name=table["recipe"], settings=asked)
        assert changed != plain, variant
        assert ssl.step_cost(changed.method, changed.data) <= 13, variant


def method_of(name: str, **changes: object) -> MethodConfig:
    """The method of a recipe, changed."""
    values = {key.removeprefix("method."): value for key, value in RECIPES[name].items() if "method." in key}
    return MethodConfig(**values | changes)


@pytest.mark.parametrize("name", ["supervised", "paper", "fixmatch"])
@pytest.mark.parametrize("changes", [{}, {"pairing": "random"}, {"pseudo": "decoupled"}], ids=str)
@pytest.mark.parametrize("images", [4, 2])
def test_the_cost_is_that_of_the_forwards_of_a_step(
    ssl: Any, name: str, changes: dict[str, object], images: int
) -> None:
    method, classes = method_of(name, **changes), load_classes("voc")
    network = build_network(ModelConfig(encoder="toy", decoder_channels=16), classes)
    teacher, cost = averaged_copy(network), 0.0

    def count(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal cost
        cost += (3 if torch.is_grad_enabled() else 1) * len(arguments[0]) / 4

    for each in (network, teacher):
        each.register_forward_pre_hook(count)
    pixels = torch.randint(0, 256, (4 + images, 3, 24, 24), dtype=torch.uint8)
    masks = torch.randint(0, 21, (4, 24, 24), dtype=torch.uint8)
    inputs = StepInput(LabeledBatch(pixels[:4], masks), pixels[4:], 2.0, np.random.default_rng(0))
    if method.name == "supervised":
        supervised_step(network, inputs, torch.Tensor.backward, method=method, classes=classes)
    else:
        guidedmix_step(network, inputs, torch.Tensor.backward, method=method, classes=classes, average=teacher)
    data = DataConfig(Path(), labeled_batch=4, unlabeled_batch=images)
    assert ssl.step_cost(method, data) == cost <= 13


def test_a_budget_is_spent_and_not_overdrawn(ssl: Any) -> None:
    data = DataConfig(Path(), labeled_batch=8, unlabeled_batch=8)
    assert ssl.iterations_within(3000, method_of("supervised"), data) == 1000
    assert ssl.step_cost(method_of("paper"), data) == 10
    steps = ssl.iterations_within(3000, method_of("paper"), data)
    spent = 0.05 * steps * 3 + 0.95 * steps * 10
    assert 3000 - 10 < spent <= 3000


def test_what_few_labels_give_is_paired_by_seed() -> None:
    few: Any = SimpleNamespace(**runpy.run_path(str(PROGRAM.with_name("few_labels.py")), run_name="few_labels"))
    scores = {"default": [81.0, 83.0, 82.0], "alone": [74.0, 75.0, 76.0], "all-labels": [88.0, 88.0, 88.0]}
    runs = [
        few.Run(variant, seed, miou, 400.0, 500.0, 3.0, "0" * 12)
        for variant, values in scores.items()
        for seed, miou in enumerate(values)
    ]
    gained = [7.0, 8.0, 6.0]
    assert few.differences(runs, "default", "alone") == gained
    expected = ttest_rel(scores["default"], scores["alone"]).confidence_interval(0.95)
    assert few.interval(gained) == f"7.00 ± {(expected.high - expected.low) / 2:.2f}"
    text = few.to_markdown(runs)
    assert f"- default over alone: {few.interval(gained)}" in text
    assert "that is closed: 54 %" in text  # 7 of 13
