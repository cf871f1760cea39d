"""Validations before the last one take as many images as cost a tenth of the training time."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from gmtool_training.loop.run import train
from gmtool_training.loop.val_images import LEAST, image_steps, step_passes, taken_images

from gmtool.config import TrainConfig
from gmtool.data.datasets import load_training_data
from gmtool.data.samples import Sample
from gmtool.settings import Settings, build_config


@pytest.fixture
def samples(toy_config: TrainConfig) -> tuple[Sample, ...]:
    """40 images of 64x48."""
    return load_training_data(toy_config.data).val.samples * 10


def changed(config: TrainConfig, *, iterations: int, **run: object) -> TrainConfig:
    return replace(
        config,
        optim=replace(config.optim, iterations=iterations),
        run=replace(config.run, **run),  # type: ignore[arg-type]
    )


def test_all_images_are_taken_where_they_cost_little(toy_config: TrainConfig, samples: tuple[Sample, ...]) -> None:
    config = changed(toy_config, iterations=10_000)
    assert taken_images(samples, config, unlabeled_from=0) == tuple(range(40))


def test_by_default_all_validations_cost_a_tenth_of_the_steps(
    toy_config: TrainConfig, samples: tuple[Sample, ...]
) -> None:
    config = changed(toy_config, iterations=200, validations=2)
    for unlabeled_from in (0, 100, 200):
        taken = taken_images(samples * 20, config, unlabeled_from=unlabeled_from)
        dearer = step_passes(config, unlabeled=True) / step_passes(config, unlabeled=False)
        steps = unlabeled_from + (200 - unlabeled_from) * dearer
        cost = config.run.validations * len(taken) * image_steps(samples, config)
        assert 0.9 * 0.1 * steps < cost <= 0.1 * steps
        gaps = {after - before for before, after in pairwise(taken)}
        assert max(gaps) - min(gaps) <= 1, "they are spread over the list"
    few = taken_images(samples * 20, changed(toy_config, iterations=1), unlabeled_from=0)
    assert len(few) == LEAST


@pytest.mark.parametrize(("limit", "count"), [(0, 40), (7, 7), (400, 40)])
def test_a_limit_that_was_asked_for_is_kept(
    toy_config: TrainConfig, samples: tuple[Sample, ...], limit: int, count: int
) -> None:
    config = changed(toy_config, iterations=1, val_limit=limit)
    assert len(taken_images(samples, config, unlabeled_from=0)) == count


def test_the_last_weights_are_scored_on_all_images_and_this_is_said(
    toy_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: Settings = {"optim.iterations": 4, "run.validations": 2}
    train(build_config(toy_settings, changes, {"run.val_limit": 2}), tmp_path / "few")
    err = capsys.readouterr().err
    assert "validation: 2 of 4 images, and all after the last step" in err
    assert "last weights on all 4 validation images: mIoU" in err
    whole = train(build_config(toy_settings, changes), tmp_path / "whole")
    events = [json.loads(line) for line in (tmp_path / "few/metrics.jsonl").read_text().splitlines()]
    few = [(each["kind"], each["images"]) for each in events if each["kind"] != "train"]
    assert few == [("val", 2), ("val", 2), ("final", 4)]
    report = json.loads((tmp_path / "few/report.json").read_text())
    assert report["confusion_matrix"] == whole.report.confusion.tolist()
    assert events[-1]["miou"] == report["miou"]
    last = json.loads((tmp_path / "few/checkpoints/last.json").read_text())
    assert last["miou"] == report["miou"]
    assert report["best"]["images"] == 2
