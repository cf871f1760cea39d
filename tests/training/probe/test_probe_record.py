"""Record and page of a probe's run: choices, scores a round, times, pictures of unlabeled images."""

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from gmtool_training.data.readers import labeled_files
from gmtool_training.engine.machine import Machine
from gmtool_training.loop.run import train
from gmtool_training.loop.validate import validate, validate_decoders
from gmtool_training.pictures.sheet import MaskTile, draw_sheet
from gmtool_training.probe.bank import View, features_at
from gmtool_training.probe.gain import Gain
from gmtool_training.probe.head import Head, Scaling
from gmtool_training.probe.pictures import Teaching, cropped, draw_unlabeled
from gmtool_training.probe.run import decoder_of
from gmtool_training.probe.self_training import PseudoWeights
from gmtool_training.watch.examples import ValidationImages
from gmtool_training.watch.stages import late_text
from PIL import Image
from torch import nn

from gmtool.artifact.checkpoints import read_checkpoint
from gmtool.artifact.run_record import RunRecord, Stage, read_events, read_record, save_record
from gmtool.classes import load_classes
from gmtool.data.datasets import load_training_data
from gmtool.nn.checkpoint import build_network
from gmtool.report.runs import read_run
from gmtool.settings import Settings, build_config, dump_config

PROBE: Settings = {
    "method.name": "probe",
    "model.decoder": "pyramid",
    "model.decoder_channels": 16,
    "model.output_stride": 16,
    "probe.steps": 10,
    "probe.rounds": 2,
    "probe.scales": (1.0,),
    "probe.labeled_pixels": 50,
    "probe.unlabeled_pixels": 30,
    "probe.input_scales": (0.5, 1.0),
}


@pytest.fixture(scope="module")
def probe_run(toy_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe whose rounds of self-training are kept, whatever they lose on so little data."""
    run_dir = tmp_path_factory.mktemp("probe") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gain, "ratio", 2.0)
        train(build_config(toy_settings, PROBE), run_dir, record=RunRecord(kind="voc", recipe="probe"))
    return run_dir


def test_the_record_has_every_choice_with_its_figures(probe_run: Path) -> None:
    choices = {choice.subject: choice for choice in read_record(probe_run).choices}
    assert list(choices) == [
        "input scale",
        "classifier",
        "unlabeled images",
        "confidence from which pseudo labels count",
    ]
    taken = {subject: [each for each in choice.candidates if each.taken] for subject, choice in choices.items()}
    scale = read_checkpoint(probe_run, "last").model.input_scale
    assert [each.name for each in taken["input scale"]] == [f"{scale:g}"]
    (kind,) = taken["classifier"]
    assert [each.name for each in choices["classifier"].candidates] == ["hidden layer", "linear"]
    assert "better by more than the standard error" in choices["classifier"].rule
    alone = choices["unlabeled images"].candidates[0]
    assert alone.figures == kind.figures
    assert len(taken["unlabeled images"]) == 1
    assert len(choices["confidence from which pseudo labels count"].candidates) == 5
    assert len(choices["unlabeled images"].candidates) == 3  # left out, the surest of each class, by a threshold


def test_there_is_a_score_a_round_and_the_last_one_is_the_reports(probe_run: Path) -> None:
    events = read_events(probe_run)
    assert [event["round"] for event in events] == [0, 1, 2]
    report = json.loads((probe_run / "report.json").read_text())
    assert events[-1]["miou"] == report["miou"] == read_checkpoint(probe_run, "best").miou
    assert events[-1]["iou"] == [row["iou"] for row in report["classes"]]
    assert report["best"] is None
    assert len(report["provenance"]["truth_sha256"]) == 64


def test_the_parts_of_the_run_are_timed(probe_run: Path) -> None:
    record = read_record(probe_run)
    assert [stage.name for stage in record.stages] == [
        "choice of the input scale",
        "features of labeled images",
        "features of unlabeled images",
        "choice of the classifier",
        "fit",
        "validation",
        "pictures",
    ]
    assert sum(stage.seconds for stage in record.stages) <= record.seconds + 0.5
    assert record.processor_seconds


def test_the_page_shows_choices_rounds_and_unlabeled_images(probe_run: Path) -> None:
    page = (probe_run / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for choice in read_record(probe_run).choices:
        assert choice.subject in text and choice.rule in text
        for each in choice.candidates:
            assert each.name + (" taken" if each.taken else "") in text
    assert "part of the run" in text and "choice of the classifier" in text
    assert 'alt="Unlabeled images' in page and (probe_run / "pairs.png").is_file()
    assert "Over the rounds of self-training" in text and "<span>round</span>" in page
    for words in ("at best", "optimistic", "flatters", "train longer"):
        assert words not in text and words not in (probe_run / "report.md").read_text()


def test_all_decoders_of_one_encoder_are_scored_as_each_alone(toy_settings: Settings) -> None:
    config = build_config(toy_settings, PROBE, {"model.decoder_channels": 0})
    classes = load_classes(config.data.classes)
    machine, split = Machine(torch.device("cpu")), load_training_data(config.data).val
    torch.manual_seed(0)
    network = build_network(config.model, classes).eval()
    other = build_network(config.model, classes).eval()
    decoders = [other.decoder, network.decoder]
    given = {"classes": classes, "config": config.data, "before_image": lambda: None}
    seen = ValidationImages(split)
    read = labeled_files(split.samples, classes, config.data)
    found = validate_decoders(machine, network, decoders, split, read=read, seen=seen, **given)  # type: ignore[arg-type]
    for decoder, matrix in zip(decoders, found, strict=True):
        network.decoder = decoder
        alone = validate(machine, network, split, **given)  # type: ignore[arg-type]
        np.testing.assert_array_equal(matrix, alone)
    assert not np.array_equal(found[0], found[1])
    worst = {example.id: example.prediction for example in seen.worst}
    assert sum(np.count_nonzero(mask != 255) for mask in worst.values()) >= int(found[1].sum())


def test_the_hash_of_a_runs_ground_truth_is_that_of_evaluate(toy_run: Path, toy_model: Path) -> None:
    from gmtool.api.evaluation import evaluate

    report = json.loads((toy_run / "report.json").read_text())
    assert report["provenance"]["truth_sha256"] == evaluate(toy_model, device="cpu").provenance.truth_sha256
    assert "not known" not in (toy_run / "report.md").read_text()


def test_images_without_a_label_are_not_in_the_hash_and_unseen_ones_leave_it_unknown(
    toy_settings: Settings,
) -> None:
    split = load_training_data(build_config(toy_settings).data).val
    image, mask, machine = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), Machine(torch.device("cpu"))
    matrix, nothing = np.eye(3, dtype=np.int64), np.zeros((3, 3), dtype=np.int64)
    every, fewer = ValidationImages(split), ValidationImages(replace(split, samples=split.samples[:3]))
    for index in range(4):
        every.add(index, image, mask + index, mask, nothing if index == 3 else matrix)
        if index < 3:
            fewer.add(index, image, mask + index, mask, matrix)
    assert every.truth_sha256(machine) == fewer.truth_sha256(machine) is not None
    assert ValidationImages(split).truth_sha256(machine) is None


def test_what_counts_are_the_teachers_sure_pixels_by_the_weights_of_their_classes(
    toy_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(toy_settings, PROBE, {"model.decoder_channels": 0})
    classes = load_classes(config.data.classes)
    split = load_training_data(config.data).unlabeled
    torch.manual_seed(0)
    network = build_network(config.model, classes).eval()
    width = sum(network.encoder.channels) + 2 * network.encoder.channels[-1]
    layer = nn.Linear(width, len(classes))
    head = Head(Scaling(torch.zeros(width), torch.ones(width)), nn.Sequential(layer).eval())
    network.decoder = decoder_of(head, network)
    weights = torch.arange(1.0, len(classes) + 1)
    views = (View(1.0, False), View(1.0, True))
    image = split.samples[0].read_image()
    some = torch.arange(0, 48), torch.arange(0, 48)
    found = [head.probabilities([features_at(network, image, view, *some)]) for view in views]
    threshold = float(torch.stack(found).mean(dim=0).max(dim=1).values.median())
    thresholds = torch.full((len(classes),), threshold)
    teaching = Teaching(head, None, PseudoWeights(thresholds, weights), views, is_used=True)
    drawn: list[Any] = []

    def keep(titles: Sequence[str], rows: Sequence[Any], **given: Any) -> Image.Image:
        drawn.extend(rows)
        return draw_sheet(titles, rows, **given)

    monkeypatch.setattr("gmtool_training.probe.pictures.draw_sheet", keep)
    png = draw_unlabeled(
        network,
        replace(split, samples=split.samples[:1]),
        lambda _: image,
        teaching,
        classes=classes,
        autocast=nullcontext,
        bf16=False,
    )
    assert png is not None and png.startswith(b"\x89PNG")
    ((picture, pseudo, counts, _),) = drawn
    assert isinstance(pseudo, MaskTile) and isinstance(counts, MaskTile)
    assert pseudo.certainty is not None and counts.certainty is not None
    np.testing.assert_array_equal(picture, image)
    # The middle of the grid, computed alone
    row, column = pseudo.labels.shape[0] // 2, pseudo.labels.shape[1] // 2
    at = [
        torch.tensor([int((place + 0.5) * side / count)])
        for place, side, count in zip((row, column), image.shape, pseudo.labels.shape, strict=False)
    ]
    both = [head.probabilities([features_at(network, image, view, *at)]) for view in views]
    expected = torch.stack(both).mean(dim=0)[0]
    assert pseudo.labels[row, column] == int(expected.argmax())
    assert pseudo.certainty[row, column] == pytest.approx(float(expected.max()), abs=1e-5)
    sure = pseudo.certainty >= threshold
    assert 0 < sure.mean() < 1, "both kinds occur"
    np.testing.assert_allclose(counts.certainty, np.where(sure, (pseudo.labels + 1) / len(classes), 0), rtol=1e-6)


def test_images_of_another_shape_are_cropped_to_their_middle() -> None:
    image = np.arange(40 * 90 * 3).reshape(40, 90, 3).astype(np.uint8)
    np.testing.assert_array_equal(cropped(image, (20, 20)), image[:, 25:65])
    np.testing.assert_array_equal(cropped(image, (80, 180)), image)
    assert cropped(image, (10, 90)).shape == (10, 90, 3)


def test_a_stopped_probe_is_not_so_many_of_forty_thousand_steps(
    toy_settings: Settings, tmp_path: Path, cli: Cli
) -> None:
    run_dir = tmp_path / "stopped"
    run_dir.mkdir()
    (run_dir / "config.toml").write_text(dump_config(build_config(toy_settings, PROBE)))
    save_record(run_dir, RunRecord(kind="folder", recipe="probe", labeled=8))
    row = read_run(run_dir)
    assert (row.iterations, row.is_finished) == (None, False)
    code, out, _ = cli(["runs", tmp_path])
    assert code == 0 and re.search(r"stopped +probe +.* not fitted ", out) and "40000" not in out


def test_a_run_over_its_time_says_what_it_took_and_why() -> None:
    record = RunRecord(
        seconds=500.0, stages=(Stage("fit", 420.0), Stage("validation", 60.0)), processor_seconds=105.0
    )
    took = "took 8:20 instead of the 1:00 asked for"
    assert late_text(record, 1.0, on_processor=True) == (
        f"{took}: it computed for 1:45 of that; other processes were busy, or files are slow to read; "
        "longest: fit, 7:00"
    )
    busy = replace(record, processor_seconds=480.0)
    for each, on_processor in ((busy, True), (record, False)):
        assert late_text(each, 1.0, on_processor=on_processor) == f"{took}; longest: fit, 7:00"
    for minutes in (None, 500 / 60, 420 / 60):
        assert late_text(record, minutes, on_processor=True) == ""


def test_tensorboard_has_the_rounds_the_iou_of_each_class_and_the_pseudo_masks(probe_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(probe_run / "tensorboard"))
    board.Reload()
    events = read_events(probe_run)
    found = [(point.step, point.value) for point in board.Scalars("val/miou")]
    assert found == [(event["iteration"], pytest.approx(event["miou"])) for event in events]
    names = [row["name"] for row in json.loads((probe_run / "report.json").read_text())["classes"]]
    pairs = [pair for event in events for pair in zip(names, event["iou"], strict=True)]
    known = {f"IoU/{name}" for name, iou in pairs if iou is not None}
    assert known and known == {tag for tag in board.Tags()["scalars"] if tag.startswith("IoU/")}
    assert board.Tags()["images"] == ["pseudo masks", "worst validation images"]
