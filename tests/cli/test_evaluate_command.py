"""`gmtool evaluate` from options to files: what is recognised is said, results are compared, exit codes tell."""

import json
import shutil
from pathlib import Path

import numpy as np
from conftest import Cli
from gmtool_serving.scoring.prepare import _data_config
from PIL import Image

from gmtool.artifact.run_config import save_run_config
from gmtool.classes import load_classes
from gmtool.settings import build_config, load_toml


def blurred(source: Path, target: Path, shift: int) -> Path:
    """Write predictions: the ground truth, moved to the side."""
    target.mkdir()
    for path in source.iterdir():
        image = Image.open(path)
        moved = Image.fromarray(np.roll(np.array(image), shift, axis=1))
        moved.putpalette(image.getpalette() or [])
        moved.save(target / path.name)
    return target


def test_masks_are_scored_compared_and_reported(cli: Cli, toy_data: Path, tmp_path: Path) -> None:
    truth, classes = toy_data / "SegmentationClass", toy_data / "classes.json"
    good, bad = blurred(truth, tmp_path / "good", 1), blurred(truth, tmp_path / "bad", 4)
    folders = ["--ground-truth", truth, "--classes", classes, "--images", toy_data / "JPEGImages"]
    code, out, err = cli(["evaluate", "--predictions", bad, *folders, "--boundary", "--out", tmp_path / "old"])
    assert code == 0, err
    assert "predictions: PNG with class indices (one channel of labels)" in err
    assert "Boundary mIoU " in out and "95 % interval " in out
    names = {path.name for path in (tmp_path / "old").iterdir()}
    assert names == {"report.html", "report.json", "report.md", "classes.csv", "images.csv"}
    new = tmp_path / "new"
    arguments = ["evaluate", "--predictions", good, *folders, "--against", tmp_path / "old", "--out", new]
    code, out, err = cli([*arguments, "--json"])
    assert code == 0, err
    value = json.loads(out)
    (difference,) = value["comparison"]["differences"]
    assert (difference["of"], difference["minus"], difference["verdict"]) == ("good", "bad", "better")
    assert difference["miou"] > 0
    assert value["miou"] - difference["miou"] == json.loads((tmp_path / "old/report.json").read_text())["miou"]
    assert {"comparison.html", "comparison.json", "comparison.md"} < {path.name for path in new.iterdir()}
    code, out, err = cli(["evaluate", "--report", new, "--against", tmp_path / "old/report.json"])
    assert code == 0, err
    assert "# good against bad" in out and "| better |" in out
    # The same images with other ground truth are no comparison
    changed = shutil.copytree(truth, tmp_path / "changed")
    path = sorted(changed.iterdir())[0]
    Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)
    folders[1] = changed
    code, _, err = cli(["evaluate", "--predictions", good, *folders, "--against", tmp_path / "old"])
    assert code == 1
    assert f"other ground truth for 1 of 24 images, for example {path.stem}" in err


def test_case_25_failed_images_are_listed_and_the_exit_code_is_3(cli: Cli, toy_data: Path, tmp_path: Path) -> None:
    predictions = shutil.copytree(toy_data / "SegmentationClass", tmp_path / "predictions")
    path = sorted(predictions.iterdir())[0]
    path.write_bytes(path.read_bytes()[:60])
    data = ["--data", toy_data, "--classes", toy_data / "classes.json", "--list", tmp_path / "all.txt"]
    (tmp_path / "all.txt").write_text("".join(f"{each.stem}\n" for each in sorted(predictions.iterdir())))
    code, out, _ = cli(["evaluate", "--predictions", predictions, *data])
    assert code == 3
    assert "23 images scored, 1 failed" in out and f"- {path.stem}: " in out
    assert "# mIoU 100.00 %" in out


def test_official_json_has_the_keys_of_cityscapesscripts(cli: Cli, tmp_path: Path) -> None:
    raw_ids = load_classes("cityscapes").raw_ids
    truth = tmp_path / "gtFine/town"
    truth.mkdir(parents=True)
    Image.fromarray(np.array([raw_ids], dtype=np.uint8)).save(truth / "town_000000_000001_gtFine_labelIds.png")
    arguments = ["evaluate", "--predictions", truth.parent, "--ground-truth", truth.parent]
    official = tmp_path / "official.json"
    code, _, err = cli([*arguments, "--classes", "cityscapes", "--official-json", official])
    assert code == 0, err
    assert "ground truth: PNG with raw ids (named labelIds)" in err
    value = json.loads(official.read_text())
    assert value["averageScoreClasses"] == value["classScores"]["car"] == 1.0
    assert np.array(value["confMatrix"]).shape == (34, 34)
    code, _, err = cli([*arguments, "--classes", "voc", "--official-json", official])
    assert code == 2
    assert "needs the 19 classes of Cityscapes" in err


def test_a_model_is_scored_on_any_folder(cli: Cli, toy_data: Path, toy_model: Path, tmp_path: Path) -> None:
    for name in ("toy_00000", "toy_00001", "toy_00002"):
        for source, target in (("JPEGImages", "photos"), ("SegmentationClass", "truth")):
            (tmp_path / target).mkdir(exist_ok=True)
            shutil.copy(next((toy_data / source).glob(f"{name}.*")), tmp_path / target)
    (tmp_path / "truth/toy_00002.png").unlink()
    Image.new("L", (5, 5)).save(tmp_path / "truth/toy_00001.png")
    folders = ["--images", tmp_path / "photos", "--ground-truth", tmp_path / "truth"]
    code, out, err = cli(["evaluate", "--model", toy_model, *folders, "--json"])
    report = json.loads(out)
    assert (code, report["num_images"]) == (3, 1), err
    assert report["failed"] == ["toy_00001: its ground truth has 5x5 pixels, the image 64x48"]
    assert report["left_out"] == ["toy_00002: no ground truth"]
    assert "2 images with a mask in " in err


def test_another_data_set_is_read_with_the_layout_of_the_run(toy_run: Path, tmp_path: Path) -> None:
    settings = load_toml(toy_run / "config.toml")
    layout = {"data.layout": "folder", "data.masks": "masks/{id}_L.png", "data.mask_values": "raw"}
    lists = {"data.root": tmp_path / "old", "data.val": tmp_path / "old/val.txt"}
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    save_run_config(tmp_path / "run", build_config(settings, layout, lists))
    shutil.copytree(toy_run / "export", tmp_path / "run/export")
    model = tmp_path / "run/export/model_fp32.onnx"
    (tmp_path / "new/images/train").mkdir(parents=True)
    read = _data_config(model, {"data.root": str(tmp_path / "new")})
    assert (read.layout, read.masks, read.mask_values, read.val) == ("folder", "masks/{id}_L.png", "raw", None)
    (tmp_path / "new/val.txt").touch()
    assert _data_config(model, {"data.root": str(tmp_path / "new")}).val == tmp_path / "new/val.txt"
    named = _data_config(model, {"data.root": str(tmp_path / "new"), "data.layout": "voc"})
    assert (named.layout, named.mask_values) == ("voc", "index")
    alone = shutil.copy(model, tmp_path)
    assert _data_config(Path(alone), {"data.root": str(tmp_path / "new")}).layout == "folder"
