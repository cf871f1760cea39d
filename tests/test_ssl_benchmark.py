"""The comparison of recipes: its statistics, and that it finishes what it began."""

import json
import runpy
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gmtool_training.recipes.configure import configure
from scipy.stats import ttest_rel

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


@pytest.mark.parametrize("name", ["paper_ablations.toml", "plus_ablations.toml"])
def test_every_ablation_is_a_configuration_that_differs_from_its_recipe(
    ssl: Any, tmp_path: Path, name: str
) -> None:
    from gmtool_training.cost import step_cost

    tables = tomllib.loads((PROGRAM.parent / name).read_text())
    assert len(tables) >= 8
    for variant, table in tables.items():
        settings = {key: value for key, value in table.items() if key != "recipe"}
        asked = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        flags = {"data.root": tmp_path}
        plain = configure("voc", flags, recipe_name=table["recipe"])
        changed = configure("voc", flags, recipe_name=table["recipe"], settings=asked)
        assert changed != plain, variant
        assert step_cost(changed.method, changed.data) <= 13, variant
