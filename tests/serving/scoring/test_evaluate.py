"""Scores against torchmetrics, and against rules of the official evaluators, to the last bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gmtool_serving.backends.onnx_runtime import OrtBackend
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.pipeline.run import predict_images
from gmtool_serving.scoring.evaluate import choose_examples, find_examples, score
from gmtool_serving.scoring.tasks import data_masks_task, folder_task, masks_task, model_task
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from gmtool.classes import ClassSet, load_classes, voc_palette
from gmtool.config import DataConfig
from gmtool.data.datasets import Split, load_split
from gmtool.errors import DataError
from gmtool.images import UInt8Array
from gmtool.report.cityscapes_json import official_dict
from gmtool.report.metrics import iou_per_class
from gmtool.report.report import IoUReport


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


def score_folders(predictions: Path, truth: Path, list_path: Path | None = None, **options: Any) -> IoUReport:
    return score(masks_task(predictions, truth, list_path, **options), progress=iter)


def test_model_and_masks_and_torchmetrics_and_training_agree(
    toy_model: Path, toy_data: Path, toy_run: Path, masks: Path
) -> None:
    classes = load_classes(str(toy_data / "classes.json"))
    split = load_split(DataConfig(root=toy_data), "val", None)
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    of_model = score(model_task(backend, split, values="index"), progress=iter)
    val = toy_data / "ImageSets/Segmentation/val.txt"
    of_masks = score_folders(masks, toy_data / "SegmentationClass", val, classes=classes)
    of_data = score(data_masks_task(masks, split, classes=classes, values="index"), progress=iter)
    images, truths = toy_data / "JPEGImages", toy_data / "SegmentationClass"
    of_folder = score(folder_task(backend, images, truths, val), progress=iter)
    for other in (of_masks, of_data, of_folder):
        np.testing.assert_array_equal(of_model.confusion, other.confusion)
        assert of_model.provenance.split_sha256 == other.provenance.split_sha256
        assert of_model.provenance.truth_sha256 == other.provenance.truth_sha256
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


def test_case_25_what_cannot_be_scored_is_listed_and_left_out_of_the_mean(tmp_path: Path) -> None:
    """Four pixels an image, computed by hand; whatever is wrong with the others changes no figure."""
    classes = ClassSet(("a", "b", "c"), voc_palette(3), (0, 1, 2))
    predictions, truth = tmp_path / "predictions", tmp_path / "truth"
    for name, true, predicted in (
        ("good 1", [0, 0, 1, 255], [0, 1, 1, 2]),
        ("good 2", [1, 1, 1, 0], [1, 1, 0, 0]),
        ("all ignored", [255, 255, 255, 255], [0, 1, 2, 0]),
        ("label of the truth", [0, 9, 0, 0], [0, 0, 0, 0]),
        ("label of the prediction", [0, 0, 0, 0], [0, 0, 7, 0]),
        ("other size", [0, 0, 0, 0], [0, 0, 0]),
        ("no prediction", [0, 0, 0, 0], None),
        ("no truth", None, [0, 0, 0, 0]),
        ("damaged truth", [2, 2, 2, 2], [0, 0, 0, 0]),
    ):
        for folder, labels in ((truth, true), (predictions, predicted)):
            folder.mkdir(exist_ok=True)
            if labels is not None:
                Image.fromarray(np.array([labels], dtype=np.uint8)).save(folder / f"{name}.png")
    (truth / "damaged truth.png").write_bytes((truth / "damaged truth.png").read_bytes()[:40])
    report = score_folders(predictions, truth, classes=classes)
    # a: found 2 of 3, predicted 3; b: found 3 of 4, predicted 4; c occurs nowhere that counts
    assert report.confusion.tolist() == [[2, 1, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0]]
    assert iou_per_class(report.confusion)[:2].tolist() == [2 / 4, 3 / 5]
    assert report.miou == (2 / 4 + 3 / 5) / 2
    assert report.images is not None
    assert report.images.ids == ("good 1", "good 2")
    assert report.images.miou.tolist() == [1 / 2, (1 / 2 + 2 / 3) / 2]
    assert (report.num_images, report.ignored_pixels) == (2, 1)
    assert list(report.left_out) == [
        "all ignored: its ground truth ignores every pixel",
        "no truth: no ground truth",
    ]
    failed = dict(line.split(": ", 1) for line in report.failed)
    assert set(failed) == {
        "label of the truth", "label of the prediction", "other size", "no prediction", "damaged truth"
    }  # fmt: skip
    assert "has label 9" in failed["label of the truth"]
    assert "has label 7" in failed["label of the prediction"]
    assert failed["other size"] == "mask of 3x1 pixels, but its ground truth has 4x1"
    assert "no prediction: no mask in" in failed["no prediction"]
    assert "damaged" in failed["damaged truth"]


def test_case_25_a_data_set_with_a_missing_mask_is_scored_without_it(
    toy_model: Path, toy_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_data, tmp_path / "data")
    names = (tmp_path / "data/ImageSets/Segmentation/val.txt").read_text().split()
    (tmp_path / "data/SegmentationClass" / f"{names[1]}.png").unlink()
    Image.new("L", (5, 5)).save(tmp_path / "data/SegmentationClass" / f"{names[2]}.png")
    config = DataConfig(root=tmp_path / "data")
    with pytest.raises(DataError, match="has no mask"):
        load_split(config, "val", None)
    split = load_split(config, "val", None, missing_masks=True)
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    report = score(model_task(backend, split, values="index"), progress=iter)
    assert report.num_images == 2
    assert [line.split(":")[0] for line in report.failed] == names[1:3]
    assert "cannot be read: No such file" in report.failed[0]
    assert "is 5x5, but its image is 64x48" in report.failed[1]


def test_nothing_scored_is_an_error(tmp_path: Path, toy_data: Path) -> None:
    (tmp_path / "other").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "other/x.png")
    classes = load_classes(str(toy_data / "classes.json"))
    for predictions, expected in ((tmp_path / "other", "none of 24"), (tmp_path / "x", "no such folder")):
        with pytest.raises(DataError, match=expected):
            score_folders(predictions, toy_data / "SegmentationClass", classes=classes)


def test_ground_truth_may_be_colour_coded_and_that_is_recognised(
    masks: Path, toy_data: Path, tmp_path: Path
) -> None:
    classes = load_classes(str(toy_data / "classes.json"))
    for path in (toy_data / "SegmentationClass").iterdir():
        Image.open(path).convert("RGB").save(tmp_path / path.name)
    by_index = score_folders(masks, toy_data / "SegmentationClass", classes=classes)
    by_color = score_folders(masks, tmp_path, classes=classes)
    np.testing.assert_array_equal(by_index.confusion, by_color.confusion)
    assert "colours of the classes" in by_color.protocol.truth_values
    assert by_index.provenance.truth_sha256 == by_color.provenance.truth_sha256


def test_the_worst_and_the_median_images_are_shown_once_each(masks: Path, toy_data: Path) -> None:
    classes = load_classes(str(toy_data / "classes.json"))
    task = masks_task(masks, toy_data / "SegmentationClass", None, classes=classes, images=toy_data / "JPEGImages")
    report = score(task, progress=iter)
    assert report.images is not None
    chosen = choose_examples(report.images)
    order = np.sort(report.images.miou)
    assert [report.images.miou[place] for kind, place in chosen if kind == "worst"] == order[:5].tolist()
    assert [report.images.miou[place] for kind, place in chosen if kind == "median"] == order[10:13].tolist()
    few = report.images.subset(range(4))
    assert sorted(place for _, place in choose_examples(few)) == [0, 1, 2, 3]
    example = find_examples(task, report)[0]
    assert example.picture is not None
    truth = np.array(Image.open(toy_data / "SegmentationClass" / f"{example.id}.png"))
    np.testing.assert_array_equal(example.truth, truth)
    assert example.picture.shape == (*truth.shape, 3)


# The official evaluators


def street(seed: int) -> tuple[UInt8Array, UInt8Array]:
    """Label ids of a ground truth with void labels, and a prediction that sometimes is void too."""
    random = np.random.default_rng(seed)
    ids = np.array(load_classes("cityscapes").raw_ids, dtype=np.uint8)[: 17 + seed]  # some classes occur nowhere
    truth = random.choice(np.concatenate([ids, [0, 1, 4, 9, 29]]), (8, 10)).repeat(9, 0).repeat(7, 1)
    wrong = random.random(truth.shape) < 0.3
    prediction = np.where(wrong, random.choice(np.append(ids, 0), truth.shape), truth)
    prediction[np.isin(prediction, [1, 4, 9, 29])] = 7
    return truth.astype(np.uint8), prediction.astype(np.uint8)


def test_scores_are_those_of_cityscapesscripts_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script itself reads the same files; it needs a function that NumPy 2.4 dropped."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    truths, predictions = [], []
    for index in range(2):
        truth, prediction = street(index)
        truths.append(tmp_path / f"gtFine/town/town_00000{index}_000019_gtFine_labelIds.png")
        predictions.append(tmp_path / f"results/town_00000{index}_000019_pred.png")
        for path, labels in ((truths[-1], truth), (predictions[-1], prediction)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
    arguments: Any = official.args
    switches = {"quiet": True, "JSONOutput": False, "evalInstLevelScore": False, "evalPixelAccuracy": False}
    for name, value in switches.items():
        monkeypatch.setattr(arguments, name, value)
    monkeypatch.setattr(official, "CSUPPORT", False)
    theirs = official.evaluateImgLists(
        [str(path) for path in predictions], [str(path) for path in truths], arguments
    )
    classes = load_classes("cityscapes")
    report = score_folders(tmp_path / "results", tmp_path / "gtFine", classes=classes)
    assert report.no_class.sum() > 0
    ours = official_dict(report)
    assert set(ours) == set(theirs)
    for key in ("classScores", "categoryScores"):
        assert ours[key] == {name: None if np.isnan(value) else value for name, value in theirs[key].items()}
    assert ours["classScores"]["bicycle"] is None  # occurs nowhere
    for key in ("averageScoreClasses", "averageScoreCategories", "labels"):
        assert ours[key] == theirs[key]
    assert report.miou == theirs["averageScoreClasses"]
    evaluated = np.ix_(list(classes.raw_ids), [0, *classes.raw_ids])
    np.testing.assert_array_equal(
        np.array(ours["confMatrix"])[evaluated], np.array(theirs["confMatrix"])[evaluated]
    )
    for name in classes.names:
        assert ours["priors"][name] == theirs["priors"][name]


def voc_evaluator(pairs: list[tuple[UInt8Array, UInt8Array]], num: int) -> tuple[list[float], float]:
    """Return accuracies and their mean in per cent by the rules of the VOC development kit (VOCevalseg.m).

    locs = gtim<255; sumim = 1+gtim+resim*num; hs = histc(sumim(locs),1:num*num);
    confcounts(:) = confcounts(:) + hs(:);
    gtj=sum(confcounts(j,:)); resj=sum(confcounts(:,j)); gtjresj=confcounts(j,j);
    accuracies(j)=100*gtjresj/(gtj+resj-gtjresj); avacc = mean(accuracies);
    """
    confcounts = [[0] * num for _ in range(num)]
    for gtim, resim in pairs:
        for true, result in zip(gtim.ravel().tolist(), resim.ravel().tolist(), strict=True):
            if true < 255:
                confcounts[true][result] += 1
    accuracies = []
    for j in range(num):
        gtj, resj = sum(confcounts[j]), sum(row[j] for row in confcounts)
        accuracies.append(100 * confcounts[j][j] / (gtj + resj - confcounts[j][j]))
    total = 0.0
    for accuracy in accuracies:
        total += accuracy
    return accuracies, total / num


def test_scores_are_those_of_the_voc_kit_to_the_last_digit(tmp_path: Path) -> None:
    classes = load_classes("voc")
    pairs = []
    for folder in ("truth", "results"):
        (tmp_path / folder).mkdir()
    for index in range(3):
        random = np.random.default_rng(index)
        truth = random.integers(0, 21, (9, 11), dtype=np.uint8).repeat(5, 0).repeat(5, 1)
        prediction = np.where(random.random(truth.shape) < 0.4, random.integers(0, 21, truth.shape), truth)
        truth[random.random(truth.shape) < 0.1] = 255
        pairs.append((truth, prediction.astype(np.uint8)))
        for folder, labels in zip(("truth", "results"), pairs[-1], strict=True):
            image = Image.fromarray(labels)
            image.putpalette(np.array(voc_palette(256), dtype=np.uint8).ravel().tolist())
            image.save(tmp_path / folder / f"2007_00000{index}.png")
    accuracies, mean = voc_evaluator(pairs, 21)
    report = score_folders(tmp_path / "results", tmp_path / "truth", classes=classes)
    ours = 100 * iou_per_class(report.confusion)
    assert [f"{value:.13f}" for value in ours] == [f"{value:.13f}" for value in accuracies]
    assert f"{100 * report.miou:.13f}" == f"{mean:.13f}"


def test_a_split_without_images_is_an_empty_score(toy_model: Path) -> None:
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    with pytest.raises(DataError, match="no image"):
        score(model_task(backend, Split("empty.txt", ()), values="index"), progress=iter)
