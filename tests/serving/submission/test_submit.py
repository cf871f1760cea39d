import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from conftest import Cli
from gmtool_serving.outputs.formats import MaskItem, encode
from gmtool_serving.outputs.whole_run_files import finish
from gmtool_serving.submission.check import check_submission
from gmtool_serving.submission.names import Benchmark
from PIL import Image

from gmtool.classes import load_classes
from gmtool.errors import DataError

VOC_DIR = PurePosixPath("results/VOC2012/Segmentation/comp6_test_cls")
SIZE = (48, 64)
TOWNS = [f"town_00000{number}_000019" for number in range(3)]
VOC_IDS = [f"2008_00000{number}" for number in range(3)]


def labels_up_to(largest: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, largest + 1, SIZE, dtype=np.uint8)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A folder of images and, in `out`, the masks of a run in the format `voc-submission`."""
    classes = load_classes("voc")
    (tmp_path / "JPEGImages").mkdir()
    for seed, name in enumerate(VOC_IDS):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        for path, content in encode(
            "voc-submission", MaskItem(PurePosixPath(name), labels_up_to(20, seed)), classes
        ):
            (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / path).write_bytes(content)
    finish("voc-submission", tmp_path / "out", [PurePosixPath(name) for name in VOC_IDS])
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """A folder of ground truth and, in `out`, the masks of a run in the format `cityscapes`."""
    classes = load_classes("cityscapes")
    truth = tmp_path / "gtFine" / "val" / "town"
    truth.mkdir(parents=True)
    for seed, name in enumerate(TOWNS):
        Image.fromarray(labels_up_to(33, seed)).save(truth / f"{name}_gtFine_labelIds.png")
        item = MaskItem(PurePosixPath("town") / f"{name}_leftImg8bit", labels_up_to(18, seed))
        for path, content in encode("cityscapes", item, classes):
            (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / path).write_bytes(content)
    return tmp_path


def kinds(benchmark: Benchmark, source: Path, images: Path | None) -> list[str]:
    return [problem.kind for problem in check_submission(benchmark, source, images=images).problems]


def test_what_predict_writes_is_acceptable(voc: Path) -> None:
    for benchmark, source, images in (
        ("voc", voc / "out", voc / "JPEGImages"),
        ("voc", voc / "out" / VOC_DIR, voc / "JPEGImages"),
        ("voc", voc / "out" / "results.tar", voc / "JPEGImages"),
    ):
        report = check_submission(benchmark, source, images=images)  # type: ignore[arg-type]
        assert (report.problems, report.masks, report.expected, report.compared_sizes) == ((), 3, 3, True)


def test_cityscapes_masks_and_archives_of_them_are_acceptable(cityscapes: Path) -> None:
    out = cityscapes / "out"
    with (
        zipfile.ZipFile(cityscapes / "out.zip", "w") as archive,
        tarfile.open(cityscapes / "o.tgz", "w:gz") as tar,
    ):
        for path in out.rglob("*.png"):
            archive.write(path, path.name)
            tar.add(path, f"./results/{path.name}")
    for source in (out, cityscapes / "out.zip", cityscapes / "o.tgz"):
        report = check_submission("cityscapes", source, images=cityscapes / "gtFine")
        assert (report.problems, report.masks, report.expected) == ((), 3, 3)


Change = Callable[[Path], object]


def save(mode: str, size: tuple[int, int] = SIZE[::-1], color: Any = 7) -> Change:
    image = Image.new("L" if mode == "P" else mode, size, color)
    if mode == "P":
        image.putpalette(bytes(768))
    return lambda path: image.save(path, "PNG")


CITYSCAPES_CASES: dict[str, tuple[Change, str | None]] = {
    "as it is": (lambda path: None, None),
    "palette": (lambda path: Image.open(path).convert("P").save(path), None),
    "another ending": (lambda path: path.rename(path.with_name(f"{TOWNS[1]}_leftImg8bit.png")), None),
    "another folder": (lambda path: path.rename(path.parents[1] / path.name), None),
    "a colour mask beside it": (
        lambda path: save("RGB", color=0)(path.with_name(f"{TOWNS[1]}_color.png")),
        "twice",
    ),
    "missing": (lambda path: path.unlink(), "missing"),
    "named after nothing": (lambda path: path.rename(path.with_name("1.png")), "missing"),
    "three channels": (save("RGB", color=0), "mode"),
    "with transparency": (save("LA", color=0), "mode"),
    "half the size": (save("L", (32, 24)), "size"),
    "turned": (save("L", SIZE), "size"),
    "ignored pixels as 255": (save("L", color=255), "label"),
    "label 34": (save("L", color=34), "label"),
    "label 33": (save("L", color=33), None),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-50]), "unreadable"),
    "text": (lambda path: path.write_text("no image"), "unreadable"),
    "a file of no image": (lambda path: save("RGB", color=0)(path.with_name("extra_000000_000019.png")), None),
}


@pytest.mark.parametrize("case", CITYSCAPES_CASES)
def test_the_check_takes_and_refuses_what_the_official_script_does(
    case: str, cityscapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, expected = CITYSCAPES_CASES[case]
    change(cityscapes / "out" / "town" / f"{TOWNS[1]}_pred.png")
    found = kinds("cityscapes", cityscapes / "out", cityscapes / "gtFine")
    assert found[:1] == ([expected] if expected else [])
    assert official_takes(cityscapes, monkeypatch) == (expected is None)


def official_takes(root: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run cityscapesScripts: it ends the process for what it refuses, or it runs into an exception."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # NumPy 2.4 dropped it
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(root / "out"))
    arguments: Any = official.args
    settings = {"quiet": True, "JSONOutput": False, "evalInstLevelScore": False, "evalPixelAccuracy": False}
    for name, value in (settings | {"predictionPath": None, "predictionWalk": None}).items():
        monkeypatch.setattr(arguments, name, value, raising=False)
    truths = sorted(map(str, (root / "gtFine").rglob("*_labelIds.png")))
    try:
        predictions = [official.getPrediction(arguments, truth) for truth in truths]
        official.evaluateImgLists(predictions, truths, arguments)
    except (SystemExit, IndexError):
        return False
    return True


def test_masks_of_trainids_are_found_though_the_official_script_scores_them(
    cityscapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, path in enumerate(sorted((cityscapes / "out").rglob("*.png"))):
        Image.fromarray(labels_up_to(18, seed)).save(path)
    assert official_takes(cityscapes, monkeypatch)
    report = check_submission("cityscapes", cityscapes / "out", images=cityscapes / "gtFine")
    assert [problem.message for problem in report.problems] == [
        "all labels are below 19, and some are not evaluated: these are trainIds; expected label ids"
    ]


def test_without_images_cityscapes_masks_have_the_benchmarks_names_and_size(
    cityscapes: Path,
) -> None:
    for path in (cityscapes / "out").rglob("*.png"):
        path.unlink()
    save("L", (2048, 1024))(cityscapes / "out" / f"{TOWNS[0]}.png")
    assert kinds("cityscapes", cityscapes / "out", None) == []
    save("L")(cityscapes / "out" / f"{TOWNS[1]}_pred.png")
    save("L")(cityscapes / "out" / "x.png")
    assert kinds("cityscapes", cityscapes / "out", None) == ["name", "size"]


VOC_CASES: dict[str, tuple[Change, str | None]] = {
    "grey": (save("L", color=20), None),
    "one bit": (save("1", color=1), None),
    "label 21": (save("P", color=21), "label"),
    "ignored pixels as 255": (save("P", color=255), "label"),
    "another size": (save("P", SIZE), "size"),
    "colours": (save("RGB", color=0), "mode"),
    "16 bits": (save("I;16", color=3), "mode"),
    "missing": (lambda path: path.unlink(), "missing"),
    "under its image's whole name": (lambda path: path.rename(f"{path.with_suffix('')}.jpg.png"), "missing"),
    "empty": (lambda path: path.write_bytes(b""), "unreadable"),
    "JPEG": (lambda path: Image.new("L", SIZE[::-1]).save(path, "JPEG"), "unreadable"),
}


@pytest.mark.parametrize("case", VOC_CASES)
def test_voc_masks_by_the_rules_of_vocevalseg(case: str, voc: Path) -> None:
    change, expected = VOC_CASES[case]
    change(voc / "out" / VOC_DIR / f"{VOC_IDS[1]}.png")
    assert kinds("voc", voc / "out", voc / "JPEGImages") == ([expected] if expected else [])


def test_a_voc_archive_without_its_folders_or_with_a_mask_twice_is_refused(voc: Path) -> None:
    masks = sorted((voc / "out" / VOC_DIR).iterdir())
    for name, prefix in (("flat.tar", ""), ("deep.tar", f"run/{VOC_DIR}/"), ("good.tar", f"./{VOC_DIR}/")):
        with tarfile.open(voc / name, "w") as archive:
            for path in masks:
                archive.add(path, f"{prefix}{path.name}")
    assert kinds("voc", voc / "flat.tar", voc / "JPEGImages") == ["place"]
    assert kinds("voc", voc / "deep.tar", voc / "JPEGImages") == ["place"]
    assert kinds("voc", voc / "good.tar", voc / "JPEGImages") == []
    with tarfile.open(voc / "good.tar", "a") as archive:
        archive.add(masks[0], f"{VOC_DIR}/{masks[0].name}")
    assert kinds("voc", voc / "good.tar", voc / "JPEGImages") == ["twice"]


def test_the_command(cli: Cli, voc: Path) -> None:
    (voc / "test.txt").write_text("\n".join(VOC_IDS[:2]))
    listed = ["--images", voc / "JPEGImages", "--list", voc / "test.txt"]
    code, out, err = cli(["submit", "check", "voc", voc / "out", *listed])
    assert (code, out) == (0, f"acceptable: 2 masks for 2 images in {voc / 'out'}\n")
    assert "1 other PNG files were not looked at" in err
    for name in VOC_IDS[:2]:
        save("P", color=255)(voc / "out" / VOC_DIR / f"{name}.png")
    code, out, err = cli(["submit", "check", "voc", voc / "out", "--show", "1", *listed])
    assert code == 1
    assert out.splitlines() == [
        f"not acceptable: 2 masks for 2 images in {voc / 'out'}: 2 label",
        f"label      {VOC_DIR}/2008_000000.png: label 255 on 3072 pixels; expected 0 to 20: "
        "ignored pixels must be 0",
        "and 1 more (--show 2 or --json)",
    ]
    code, out, err = cli(["submit", "check", "voc", voc / "out", "--json"])
    report = json.loads(out)
    assert code == 1
    assert (report["acceptable"], report["counts"], len(report["problems"])) == (False, {"label": 2}, 2)
    assert "only the masks that are there were looked at: --images DIR or --list FILE" in err


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nowhere", "no such folder or archive"),
        ("JPEGImages", r"no mask \(\*.png\)"),
        ("x.tar", "whole tar or zip"),
    ],
)
def test_what_is_no_submission_is_one_line(voc: Path, source: str, expected: str) -> None:
    (voc / "x.tar").write_bytes(os.urandom(2000))
    with pytest.raises(DataError, match=expected):
        check_submission("voc", voc / source)


def test_a_damaged_archive_and_a_list_of_other_images_are_one_line(voc: Path) -> None:
    content = (voc / "out" / "results.tar").read_bytes()
    (voc / "cut.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="whole tar or zip"):
        check_submission("voc", voc / "cut.tar")
    (voc / "list.txt").write_text("2008_000001\n2009_000001\n")
    with pytest.raises(DataError, match="1 images of .*list.txt are not in it, such as 2009_000001"):
        check_submission("voc", voc / "out", images=voc / "JPEGImages", list_path=voc / "list.txt")
    with pytest.raises(DataError, match="2008_000001 is not a Cityscapes image"):
        check_submission("cityscapes", voc / "out", list_path=voc / "list.txt")
    shutil.move(voc / "out" / VOC_DIR, voc / "out" / "elsewhere")
    with pytest.raises(DataError, match="no masks at the top level of the folder, nor in its results/VOC2012"):
        check_submission("voc", voc / "out")
