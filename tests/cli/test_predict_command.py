"""`gmtool predict` as a person meets it, and as a script does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Cli
from PIL import Image


@pytest.fixture
def flags(toy_model: Path) -> list[object]:
    """Flags of a small and reproducible run."""
    return ["--model", toy_model, "--device", "cpu", "--threads", "1", "--workers", "0"]


def test_formats_speed_and_summary(
    cli: Cli, toy_data: Path, toy_model: Path, tmp_path: Path, flags: list[object]
) -> None:
    out = tmp_path / "out"
    arguments = ["predict", toy_data / "JPEGImages", "--out", out, *flags]
    code, stdout, err = cli([*arguments, "--format", "voc,color", "--format", "coco", "--json"])
    assert code == 0, err
    summary = json.loads(stdout)
    assert (summary["inputs"], summary["ok"], summary["formats"]) == (24, 24, ["voc", "color", "coco"])
    assert summary == json.loads((out / "manifest.jsonl").read_text().splitlines()[-1])["summary"]
    assert len(list((out / "voc").glob("*.png"))) == len(list((out / "color").glob("*.png"))) == 24
    assert (out / "coco" / "results.json").is_file()
    assert "speed: decode " in err and " ms per image" in err
    code, stdout, err = cli([*arguments, "--format", "voc,color,coco", "--resume", "--quiet"])
    assert (code, err) == (0, "")
    assert stdout.startswith(f"0 masks in {out}, 24 skipped, 0 failed")


def test_a_batch_and_shards_give_the_same_masks(
    cli: Cli, toy_data: Path, tmp_path: Path, flags: list[object]
) -> None:
    for out, options in (("one", [[]]), ("eight", [["--batch", "8", "--shard", f"{n}/2"] for n in (1, 2)])):
        for option in options:
            code, _, err = cli(["predict", toy_data / "JPEGImages", "--out", tmp_path / out, *flags, *option])
            assert code == 0, err
    masks = sorted((tmp_path / "one").glob("*.png"))
    assert len(masks) == 24
    for path in masks:
        assert path.read_bytes() == (tmp_path / "eight" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--format", "vok"], 2, "unknown format vok; did you mean voc?"),
        (["--shard", "5/4"], 2, "--shard 5/4: expected NUMBER/COUNT"),
        (["--tile", "big"], 2, "--tile big: expected HEIGHTxWIDTH"),
        (["--overlap", "8"], 2, "--overlap needs --tile HEIGHTxWIDTH"),
        (["--tile", "32x32"], 1, "gives mask alone: export it with gmtool export --output logits"),
        (["--ground-truth", "x", "--format", "color"], 2, "add --format voc or --format trainids"),
        (["--format", "npz"], 1, "stores confidence"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_predicted(
    cli: Cli, toy_data: Path, tmp_path: Path, flags: list[object], arguments: list[str], code: int, expected: str
) -> None:
    actual, out, err = cli(["predict", toy_data / "JPEGImages", "--out", tmp_path / "out", *flags, *arguments])
    assert (actual, out) == (code, "")
    assert expected in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_case_02_nothing_usable_has_no_success_text_and_much_trouble_is_cut_short(
    cli: Cli, tmp_path: Path, flags: list[object]
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(30):
        (tmp_path / "in" / f"{index:02d}.jpg").write_text("text")
    code, out, err = cli(["predict", tmp_path / "in", "--out", tmp_path / "out", *flags])
    assert code == 1
    assert out.startswith("0 masks in ") and "30 failed" in out
    assert "speed:" not in err
    images = tmp_path / "in"
    first, *_, last = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert err.count("failed: ") == 2
    assert first.startswith(f"failed: {images}/00.jpg: not an image ")
    assert first.endswith(f" (30 such: {images}/00.jpg, {images}/01.jpg, {images}/02.jpg and 27 more)")
    assert last == f"failed: all of them: {tmp_path / 'out' / 'manifest.jsonl'}"


def test_case_10_inputs_outside_of_everything_have_masks_inside(
    cli: Cli, toy_data: Path, tmp_path: Path, flags: list[object]
) -> None:
    (tmp_path / "work").mkdir()
    shutil.copy(toy_data / "JPEGImages" / "toy_00000.jpg", tmp_path / "up.jpg")
    listed = tmp_path / "work" / "list.txt"
    listed.write_text(f"../up.jpg\n{toy_data / 'JPEGImages' / 'toy_00001.jpg'}\n")
    out = tmp_path / "work" / "out"
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(out)}
    code, _, err = cli(["predict", f"@{listed}", "--out", out, *flags])
    assert code == 0, err
    assert len(list(out.rglob("*.png"))) == 2
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(out)} == before


def test_case_25_what_has_no_usable_ground_truth_is_listed_and_left_out(
    cli: Cli, toy_data: Path, tmp_path: Path, flags: list[object]
) -> None:
    images, truth = tmp_path / "images", tmp_path / "truth"
    images.mkdir()
    truth.mkdir()
    for index in range(8):
        name = f"toy_{index:05d}"
        shutil.copy(toy_data / "JPEGImages" / f"{name}.jpg", images)
        shutil.copy(toy_data / "SegmentationClass" / f"{name}.png", truth)
    (truth / "toy_00000.png").unlink()
    Image.new("L", (5, 5)).save(truth / "toy_00001.png")
    Image.new("L", (64, 48), 77).save(truth / "toy_00002.png")
    shutil.copy(truth / "toy_00003.png", truth / "not_predicted.png")
    arguments = ["predict", images, "--out", tmp_path / "out", *flags, "--ground-truth", truth]
    code, out, err = cli(arguments)
    assert code == 0, err
    assert "of 5 images, 3 left out" in out.splitlines()[-1]
    for index in range(3):
        assert f"not scored: toy_{index:05d}: " in err
    assert "not_predicted" not in err
    code, as_json, err = cli([*arguments, "--json"])
    assert code == 0, err
    score = json.loads(as_json)["score"]
    assert score["num_images"] == 5
    assert f"mIoU {100 * score['miou']:.2f} %" in out
    for path in truth.iterdir():
        path.unlink()
    Image.new("L", (5, 5)).save(truth / "toy_00001.png")
    code, out, err = cli(arguments)
    assert code == 1
    assert out.startswith("8 masks") and "none of 8 images could be scored" in err


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_case_20_a_stopped_prediction_leaves_whole_masks_and_a_closed_manifest(
    toy_data: Path, toy_model: Path, tmp_path: Path, number: signal.Signals, expected: int
) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    for index in range(3000):
        os.link(toy_data / "JPEGImages/toy_00000.jpg", images / f"{index:04d}.jpg")
    command = [sys.executable, "-m", "gmtool", "predict", str(images), "--out", str(masks)]
    process = subprocess.Popen(
        [*command, "--model", str(toy_model), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Background jobs of a shell ignore Ctrl-C, and what they start inherits that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  there are no threads
    )
    deadline = time.monotonic() + 60
    while not list(masks.glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.005)
    asked = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - asked < 5
    assert process.returncode == expected, err
    assert err.decode().splitlines()[-1].endswith("the same command with --resume does the rest")
    assert b"Traceback" not in err
    assert b" not reached" in out
    done = list(masks.glob("*.png"))
    assert 0 < len(done) < 3000
    assert len({path.read_bytes() for path in done}) == 1
    *records, last = (json.loads(line) for line in (masks / "manifest.jsonl").read_text().splitlines())
    assert {masks / file["path"] for record in records for file in record["outputs"]} <= set(done)
    assert last["summary"]["not_reached"] == 3000 - len(records) > 0
    assert not list(masks.glob(".*"))


def test_a_file_of_the_whole_that_cannot_be_made_does_not_hide_the_result(
    cli: Cli, toy_data: Path, tmp_path: Path, flags: list[object]
) -> None:
    (tmp_path / "out/results.json").mkdir(parents=True)
    image = toy_data / "JPEGImages" / "toy_00000.jpg"
    code, out, err = cli(["predict", image, "--out", tmp_path / "out", "--format", "coco", *flags])
    assert code == 1
    assert out.startswith(f"1 masks in {tmp_path / 'out'}, 0 failed")
    assert f"error: results.json was not written: {tmp_path / 'out'}" in err and "Traceback" not in err
    assert (tmp_path / "out/pieces/toy_00000.json").is_file()


def test_a_name_too_long_costs_one_image_and_neither_result_nor_exit_code(
    cli: Cli, toy_data: Path, tmp_path: Path, flags: list[object]
) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for name in ("a.jpg", f"{'x' * 251}.jpg"):
        shutil.copy(toy_data / "JPEGImages" / "toy_00000.jpg", images / name)
    arguments = ["predict", images, "--out", tmp_path / "out", *flags]
    code, out, err = cli([*arguments, "--format", "coco,voc"])
    assert code == 3, err
    assert out.startswith(f"1 masks in {tmp_path / 'out'}, 1 failed")
    assert "File name too long" in err and "Traceback" not in err
    assert len(json.loads((tmp_path / "out/coco/results.json").read_text())) > 0
    code, out, err = cli([*arguments, "--format", "voc"])
    assert code == 0, err
