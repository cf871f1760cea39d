"""Against independent implementations: torchmetrics, and the official Cityscapes script itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from gmtool.classes import load_classes
from gmtool.errors import DataError
from gmtool.report.metrics import confusion_matrix, iou_per_class, mean_iou, pixel_accuracy, recall_per_class


def maps(num_classes: int, absent: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Ground truth with ignored pixels and a prediction that is right most of the time."""
    random = np.random.default_rng(7)
    truth = random.integers(0, num_classes, (40, 60), dtype=np.uint8)
    wrong = random.random(truth.shape) < 0.3
    prediction = np.where(wrong, random.integers(0, num_classes, truth.shape, dtype=np.uint8), truth)
    if absent is not None:
        truth[truth == absent] = prediction[prediction == absent] = 0
    truth[random.random(truth.shape) < 0.1] = 255
    return truth, prediction.astype(np.uint8)


@pytest.mark.parametrize("absent", [None, 4])
def test_confusion_and_iou_equal_torchmetrics(absent: int | None) -> None:
    truth, prediction = maps(6, absent)
    matrix = confusion_matrix(truth, prediction, num_classes=6, ignore_index=255)
    tensors = torch.from_numpy(prediction).long(), torch.from_numpy(truth).long()
    reference = multiclass_confusion_matrix(*tensors, num_classes=6, ignore_index=255)
    np.testing.assert_array_equal(matrix, reference.numpy())
    per_class = multiclass_jaccard_index(*tensors, num_classes=6, ignore_index=255, average="none")
    present = [index for index in range(6) if index != absent]
    np.testing.assert_allclose(iou_per_class(matrix)[present], per_class.numpy()[present], rtol=1e-6)
    mean = multiclass_jaccard_index(*tensors, num_classes=6, ignore_index=255, average="macro")
    assert mean_iou(matrix) == pytest.approx(float(mean), rel=1e-6)


def test_iou_equals_the_official_cityscapes_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script runs itself, on label ids; it needs a function that NumPy 2.4 dropped."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    classes = load_classes("cityscapes")
    matrix = np.zeros((19, 19), dtype=np.int64)
    ground_truths: list[str] = []
    predictions: list[str] = []
    for index in range(2):
        truth, prediction = maps(19)
        truth = np.roll(truth, index * 5)
        matrix += confusion_matrix(truth, prediction, num_classes=19, ignore_index=255)
        ids = np.zeros(256, dtype=np.uint8)  # ignored: label id 0, "unlabeled"
        ids[:19] = classes.raw_ids
        for kind, labels, paths in (("gt", truth, ground_truths), ("pred", prediction, predictions)):
            path = tmp_path / f"town_00000{index}_000019_{kind}.png"
            Image.fromarray(ids[labels]).save(path)
            paths.append(str(path))
    arguments: Any = official.args
    for name, value in {"quiet": True, "JSONOutput": False, "evalInstLevelScore": False}.items():
        monkeypatch.setattr(arguments, name, value)
    monkeypatch.setattr(arguments, "evalPixelAccuracy", False)
    result = official.evaluateImgLists(predictions, ground_truths, arguments)
    iou = iou_per_class(matrix)
    for index, name in enumerate(classes.names):
        assert iou[index] == pytest.approx(result["classScores"][name], rel=1e-9)
    assert mean_iou(matrix) == pytest.approx(result["averageScoreClasses"], rel=1e-9)


def test_a_hand_computed_example() -> None:
    truth = np.array([[0, 0, 1, 1, 255]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1, 1, 0]], dtype=np.uint8)
    matrix = confusion_matrix(truth, prediction, num_classes=3, ignore_index=255)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert iou_per_class(matrix)[:2].tolist() == [1 / 2, 2 / 3]
    assert np.isnan(iou_per_class(matrix)[2])
    assert mean_iou(matrix) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert recall_per_class(matrix)[:2].tolist() == [1 / 2, 1.0]
    assert pixel_accuracy(matrix) == 3 / 4


def test_everything_ignored_is_not_a_score() -> None:
    ignored = np.full((2, 2), 255, dtype=np.uint8)
    matrix = confusion_matrix(ignored, np.zeros((2, 2), np.uint8), num_classes=3, ignore_index=255)
    assert matrix.sum() == 0
    assert np.isnan(mean_iou(matrix))


def test_labels_outside_the_classes_are_never_counted_as_another_class() -> None:
    truth, prediction = np.zeros((2, 2), np.uint8), np.array([[0, 3], [0, 0]], np.uint8)
    with pytest.raises(DataError, match="prediction has label 3, but there are 3 classes"):
        confusion_matrix(truth, prediction, num_classes=3, ignore_index=255)
    with pytest.raises(DataError, match="ground truth has label 3"):
        confusion_matrix(prediction, truth, num_classes=3, ignore_index=255)


def test_maps_of_different_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="mask of 3x2 pixels, but its ground truth has 2x3"):
        confusion_matrix(np.zeros((3, 2), np.uint8), np.zeros((2, 3), np.uint8), num_classes=2, ignore_index=255)
