import json
import shutil
from pathlib import Path

import pytest
from conftest import Cli
from PIL import Image

from gmtool.data.splits import read_split


@pytest.fixture
def data(toy_data: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    shutil.copytree(toy_data, tmp_path / "data")
    return tmp_path / "data"


def checked(cli: Cli, data: Path, *more: object) -> tuple[int, dict[str, object]]:
    code, out, err = cli(["data", "check", "toy", "--data", data, "--set", "data.crop_px=32", "--json", *more])
    assert out, err
    report: dict[str, object] = json.loads(out)
    return code, report


def test_a_sound_data_set_has_no_findings_and_the_right_histogram(cli: Cli, data: Path) -> None:
    code, report = checked(cli, data)
    assert code == 0
    assert report["findings"] == []
    assert report["images"] == {"labeled": 8, "unlabeled": 12, "validation": 4}
    classes = report["classes"]
    assert isinstance(classes, list)
    assert sum(row["labeled_pixels"] for row in classes) == 8 * 48 * 64
    assert sum(row["val_pixels"] for row in classes) == 4 * 48 * 64
    assert classes[0]["labeled_images"] == 8


SPOILS = {
    "a label out of range": ("error", "has label 77"),
    "a colour mask": ("error", "mode RGB"),
    "another size": ("error", "is 10x10, but its image is 64x48"),
    "a damaged unlabeled image": ("error", "damaged image"),
    "a validation image among the unlabeled": ("error", "one image 2 times"),
    "an unlabeled image twice": ("warning", "one image 2 times"),
    "a class in no labeled image": ("warning", "classes occur in no labeled image: "),
    "small images": ("warning", "images are smaller than the crop of 50 px"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_is_wrong_is_found(cli: Cli, data: Path, spoil: str) -> None:
    severity, expected = SPOILS[spoil]
    images, masks = data / "JPEGImages", data / "SegmentationClass"
    more: list[object] = []
    match spoil:
        case "a label out of range":
            Image.new("L", (64, 48), 77).save(masks / "toy_00001.png")
        case "a colour mask":
            Image.new("RGB", (64, 48), (0, 128, 0)).save(masks / "toy_00001.png")
        case "another size":
            Image.new("L", (10, 10)).save(masks / "toy_00021.png")
        case "a damaged unlabeled image":
            (images / "toy_00010.jpg").write_bytes((images / "toy_00010.jpg").read_bytes()[:300])
        case "a validation image among the unlabeled":
            shutil.copy(images / "toy_00021.jpg", images / "toy_00010.jpg")
        case "an unlabeled image twice":
            shutil.copy(images / "toy_00011.jpg", images / "toy_00010.jpg")
        case "a class in no labeled image":
            (data / "splits/labeled.txt").write_text("toy_00000\n")
        case "small images":
            more = ["--set", "data.crop_px=50"]
    code, report = checked(cli, data, *more)
    assert code == (1 if severity == "error" else 0)
    findings = report["findings"]
    assert isinstance(findings, list)
    assert [finding["severity"] for finding in findings] == [severity]
    assert expected in findings[0]["message"]


@pytest.mark.parametrize(
    ("spoil", "kind", "expected"),
    [
        ("colours", "color mask", "toy_00000.png is a mask of mode RGB"),
        ("raw ids", "raw ids", "toy_00000.png has label 10"),
        ("labels", "unknown label", "toy_00000.png has label 99"),
    ],
)
def test_a_fault_of_all_masks_is_one_finding_with_a_kind(
    cli: Cli, data: Path, spoil: str, kind: str, expected: str
) -> None:
    classes = json.loads((data / "classes.json").read_text())
    classes["raw_ids"] = list(range(10, 10 + len(classes["names"])))
    (data / "classes.json").write_text(json.dumps(classes))
    for path in (data / "SegmentationClass").iterdir():
        if spoil == "colours":
            Image.new("RGB", (64, 48), (0, 128, 0)).save(path)
        else:
            Image.new("L", (64, 48), 10 if spoil == "raw ids" else 99).save(path)
    Image.new("L", (10, 10)).save(data / "SegmentationClass/toy_00003.png")
    code, report = checked(cli, data)
    assert code == 1
    findings = [finding for finding in report["findings"] if finding["severity"] == "error"]  # type: ignore[attr-defined]
    assert sorted(finding["kind"] for finding in findings) == sorted([kind, "mask size"])
    (systematic,) = [finding for finding in findings if finding["kind"] == kind]
    assert expected in systematic["message"]
    assert "(and 10 more such files: " in systematic["message"]
    assert len(systematic["files"]) == 11


def test_the_table_is_for_people(cli: Cli, data: Path) -> None:
    code, out, _ = cli(["data", "check", "toy", "--data", data, "--set", "data.crop_px=32"])
    assert code == 0
    assert "triangle" in out and "0 errors, 0 warnings" in out


def test_a_split_trains_and_says_what_it_is(cli: Cli, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "split"
    code, text, err = cli(["data", "split", "toy", "--data", data, "--fraction", "1/4", "--out", out])
    assert code == 0, err
    assert "5 labeled and 15 unlabeled images" in text
    labeled, unlabeled = read_split(out / "labeled.txt"), read_split(out / "unlabeled.txt")
    record = json.loads((out / "split.json").read_text())
    assert (record["labeled"], record["unlabeled"]) == (len(labeled), len(unlabeled)) == (5, 15)
    assert record["classes_without_label"] == []
    code, report = checked(cli, data, "--labels", out / "labeled.txt", "--unlabeled", out / "unlabeled.txt")
    assert code == 0
    assert report["images"] == {"labeled": 5, "unlabeled": 15, "validation": 4}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--count", "3", "--fraction", "1/2"], "--count, or their share with --fraction"),
        ([], "--count, or their share with --fraction"),
        (["--fraction", "half"], "expected a share such as 1/8"),
        (["--count", "20"], "expected 1 to 19"),
    ],
)
def test_a_mistake_in_a_split_is_one_line(
    cli: Cli, data: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    code, _, err = cli(["data", "split", "toy", "--data", data, "--out", tmp_path / "split", *arguments])
    assert code == 2
    assert err.startswith("error: ") and expected in err
    assert not (tmp_path / "split").exists()


def test_toy_data_of_any_size(cli: Cli, tmp_path: Path) -> None:
    sizes = ["--labeled", "2", "--unlabeled", "1", "--val", "1"]
    code, out, err = cli(["data", "toy", tmp_path / "toy", *sizes])
    assert code == 0, err
    assert "2 labeled, 1 unlabeled and 1 validation images" in out
    assert len(list((tmp_path / "toy/JPEGImages").iterdir())) == 4


def test_a_folder_without_classes_says_how_to_make_them(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    commands = (
        ["train", "folder"],
        ["data", "check", "folder"],
        ["data", "split", "folder", "--val", "0.2", "--out", tmp_path / "x"],
    )
    for command in commands:
        code, _, err = cli([*command, "--data", tmp_path])
        assert code == 1
        assert err.count("\n") == 1 and f"error: {tmp_path / 'classes.json'} does not exist" in err
        assert '{"names": ["background", "road", "car"]}' in err and "--classes FILE" in err
    code, _, err = cli(["data", "check", "folder", "--data", tmp_path, "--classes", "voc"])
    assert code == 1 and "classes.json" not in err
