"""Pixels that a model is not sure of: ignored in every format that can carry it, said in manifest and report."""

import json
from pathlib import Path

import numpy as np
import pytest
from fakes import CLASSES, FakeBackend
from gmtool_serving.backends.base import Backend
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.pipeline.compute import ComputeOptions, parse_min_confidence
from gmtool_serving.pipeline.job import Scoring, predict_job
from gmtool_serving.pipeline.model import Model
from gmtool_serving.pipeline.run import PredictOptions
from PIL import Image

from gmtool.errors import ConfigError, UsageError
from gmtool.masks.files import encode_mask

CONFIDENT = FakeBackend(outputs=("mask", "confidence"))
"""Its confidence is the red of a pixel, out of 255."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image whose columns have the reds 0, 102, 153 and 255: confidences 0, 0.4, 0.6 and 1."""
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[..., 0] = [0, 102, 153, 255]
    path = tmp_path / "images" / "one.png"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    return path


def run(image: Path, out: Path, options: PredictOptions, backend: Backend = CONFIDENT, **more: object) -> object:
    return predict_job(collect_images([str(image)], out), out, options, lambda: backend, **more)  # type: ignore[arg-type]


def options(limit: float | None, *formats: str) -> PredictOptions:
    return PredictOptions(formats=formats or ("voc",), compute=ComputeOptions(min_confidence=limit), workers=0)  # type: ignore[arg-type]


def test_pixels_below_the_limit_are_ignored_and_those_at_it_are_kept(image: Path, tmp_path: Path) -> None:
    run(image, tmp_path / "out", options(0.6, "voc", "trainids", "npz"))
    for name in ("voc", "trainids"):
        mask = np.array(Image.open(tmp_path / "out" / name / "one.png"))
        assert mask.tolist() == [[255, 255, 1, 2]] * 2
    with np.load(tmp_path / "out/npz/one.npz") as kept:
        assert kept["mask"].tolist() == [[255, 255, 1, 2]] * 2
        assert kept["confidence"].tolist() == [[0, 102, 153, 255]] * 2


def test_the_manifest_says_the_limit_and_masks_with_another_are_made_anew(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(image, out, options(0.6))
    line, summary = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    assert line["options"]["min_confidence"] == 0.6
    assert summary["summary"]["options"]["min_confidence"] == 0.6
    again = PredictOptions(compute=ComputeOptions(), workers=0, resume=True)
    run(image, out, again)
    line = json.loads((out / "manifest.jsonl").read_text().splitlines()[0])
    assert line["status"] == "ok" and "min_confidence" not in line["options"]


def test_the_report_says_the_limit_and_counts_ignored_pixels_as_missed(image: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "one.png").write_bytes(encode_mask(np.array([[0, 1, 1, 2]] * 2, dtype=np.uint8), CLASSES))
    scoring = Scoring.of(truth, "index", ("voc",))
    done = run(image, tmp_path / "out", options(0.6), scoring=scoring)
    report = done.score  # type: ignore[attr-defined]
    assert "pixels below confidence 0.6 have no class" in report.protocol.prediction_values
    assert report.miou == pytest.approx((0 + 0.5 + 1) / 3)


def test_a_loaded_model_takes_the_limit_too(image: Path) -> None:
    result = Model(CONFIDENT).predict(image, min_confidence=0.5)
    assert result.mask.tolist() == [[255, 255, 1, 2]] * 2


def test_what_cannot_be_done_is_said(image: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--min-confidence needs the model's confidence, .* --output mask"):
        run(image, tmp_path / "out", options(0.6), FakeBackend())
    with pytest.raises(UsageError, match="--min-confidence 60: expected a probability, 0 to 1"):
        parse_min_confidence(60)
    with pytest.raises(ConfigError, match="--min-confidence needs"):
        Model(FakeBackend()).predict(image, min_confidence=0.5)
