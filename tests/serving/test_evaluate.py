import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gmtool_serving.evaluate import evaluate_masks, evaluate_model
from gmtool_serving.inputs import collect_images
from gmtool_serving.ort import OrtBackend
from gmtool_serving.predict import predict_images
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from gmtool.classes import load_classes
from gmtool.config import DataConfig
from gmtool.datasets import load_split
from gmtool.errors import DataError


@pytest.fixture(scope="module")
def masks(toy_model: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predicted masks of all toy images."""
    out = tmp_path_factory.mktemp("masks")
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    assert all(
        outcome.error is None
        for outcome in predict_images(backend, collect_images([str(toy_data / "JPEGImages")], out), out)
    )
    return out


def test_model_and_masks_and_torchmetrics_and_training_agree(
    toy_model: Path, toy_data: Path, toy_run: Path, masks: Path
) -> None:
    classes = load_classes(str(toy_data / "classes.json"))
    split = load_split(DataConfig(root=toy_data), "val", None)
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    of_model = evaluate_model(backend, split, values="index", progress=iter)
    of_masks = evaluate_masks(
        masks,
        toy_data / "SegmentationClass",
        toy_data / "ImageSets/Segmentation/val.txt",
        classes=classes,
        values="index",
        progress=iter,
    )
    np.testing.assert_array_equal(of_model.confusion, of_masks.confusion)
    assert of_model.provenance.split_sha256 == of_masks.provenance.split_sha256
    trained = json.loads((toy_run / "report.json").read_text())["provenance"]
    assert of_model.provenance.labeled_sha256 == trained["labeled_sha256"]
    metric = MulticlassJaccardIndex(num_classes=6, ignore_index=255)
    for sample in split.samples:
        assert isinstance(sample.mask, Path)
        prediction, truth = (
            torch.from_numpy(np.array(Image.open(path))) for path in (masks / f"{sample.id}.png", sample.mask)
        )
        metric.update(prediction, truth)
    assert of_masks.miou == pytest.approx(float(metric.compute()), rel=1e-6)
    best = json.loads((toy_run / "checkpoints" / "best.json").read_text())["miou"]
    assert of_model.miou == pytest.approx(best, abs=2e-3)


def test_what_cannot_be_scored_is_listed_and_left_out(masks: Path, toy_data: Path, tmp_path: Path) -> None:
    predictions, truth = tmp_path / "predictions", tmp_path / "truth"
    shutil.copytree(masks, predictions)
    shutil.copytree(toy_data / "SegmentationClass", truth)
    names = sorted(path.name for path in truth.iterdir())
    (predictions / names[0]).unlink()
    Image.new("L", (5, 5)).save(predictions / names[1])
    Image.new("L", (64, 48), 77).save(truth / names[2])
    Image.new("L", (64, 48), 255).save(truth / names[3])
    classes = load_classes(str(toy_data / "classes.json"))
    report = evaluate_masks(predictions, truth, None, classes=classes, values="index", progress=iter)
    assert report.num_images == len(names) - 3
    assert len(report.failed) == 3
    for line, expected in zip(report.failed, ("no prediction", "5x5 pixels", "has label 77"), strict=True):
        assert expected in line
    assert report.confusion.sum() == (len(names) - 4) * 48 * 64  # the fourth is all ignored


def test_nothing_scored_is_an_error(tmp_path: Path, toy_data: Path) -> None:
    (tmp_path / "empty").mkdir()
    classes = load_classes(str(toy_data / "classes.json"))
    for predictions, expected in ((tmp_path / "empty", "not one of 24"), (tmp_path / "x", "does not exist")):
        with pytest.raises(DataError, match=expected):
            evaluate_masks(
                predictions,
                toy_data / "SegmentationClass",
                None,
                classes=classes,
                values="index",
                progress=iter,
            )


def test_ground_truth_may_be_colour_coded(masks: Path, toy_data: Path, tmp_path: Path) -> None:
    classes = load_classes(str(toy_data / "classes.json"))
    for path in (toy_data / "SegmentationClass").iterdir():
        Image.open(path).convert("RGB").save(tmp_path / path.name)
    truth = toy_data / "SegmentationClass"
    by_index = evaluate_masks(masks, truth, None, classes=classes, values="index", progress=iter)
    by_color = evaluate_masks(masks, tmp_path, None, classes=classes, values="color", progress=iter)
    np.testing.assert_array_equal(by_index.confusion, by_color.confusion)
