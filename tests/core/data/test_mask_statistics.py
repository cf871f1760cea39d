"""What labels say about how they were meant is found in `train`, `--resume`, `data check` and `evaluate`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, Cli
from gmtool_serving.scoring.evaluate import score
from gmtool_serving.scoring.tasks import masks_task
from gmtool_training.loop.prepare import checked_data
from PIL import Image

from gmtool.classes import load_classes, voc_palette
from gmtool.errors import DataError
from gmtool.images import UInt8Array
from gmtool.settings import build_config

SIZE = (40, 48)
IMAGES = ("train/a", "train/b", "train/c", "val/v", "val/w")


def disc(x: int, y: int, num_classes: int) -> UInt8Array:
    """Return labels: a disc of label 1, and below it a bar of label 2 if there are three classes."""
    yy, xx = np.mgrid[: SIZE[0], : SIZE[1]]
    labels: UInt8Array = ((xx - x) ** 2 + (yy - y) ** 2 < 64).astype(np.uint8)
    if num_classes > 2:
        labels[-6:, 4:20] = 2
    return labels


Change = Callable[[UInt8Array], UInt8Array]


def write_data(root: Path, names: list[str], change: Change = lambda labels: labels) -> Path:
    """Write three training images, of which c is unlabeled, and two validation images; masks are changed."""
    for place, name in enumerate(IMAGES):
        for kind in ("images", "masks"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        labels = disc(14 + 4 * place, 16, len(names))
        Image.fromarray(labels * 90 + place).convert("RGB").save(root / f"images/{name}.jpg")
        if name != "train/c":
            Image.fromarray(change(labels)).save(root / f"masks/{name}.png")
    (root / "labeled.txt").write_text("a\nb\n")
    (root / "classes.json").write_text(json.dumps({"names": names}))
    return root


def check(cli: Cli, root: Path, *more: object) -> tuple[int, list[dict[str, str]]]:
    options = ["--labels", root / "labeled.txt", "--json", "--set", "data.crop_px=32"]
    code, out, err = cli(["data", "check", "folder", "--data", root, *options, *more])
    assert out, err
    findings: list[dict[str, str]] = json.loads(out)["findings"]
    return code, findings


def prepare(root: Path, **more: object) -> None:
    """Do what `train` and `--resume` do before the first step."""
    settings = {**SMALL, "data.root": root, "data.layout": "folder", "data.classes": str(root / "classes.json")}
    settings["method.omega_max"] = 1.0  # the paper's weight on two labels is warned of, too
    settings |= {"data.labeled": root / "labeled.txt", **{f"data.{name}": value for name, value in more.items()}}
    config = build_config(settings)
    checked_data(config, load_classes(config.data.classes), check=True)


REMEDY = '"raw_ids": [0, 255], "ignore_index": 254 in classes.json, and '


def test_case_56_masks_of_0_and_255_with_two_classes_are_refused_and_the_remedy_works(
    cli: Cli, tmp_path: Path
) -> None:
    root = write_data(tmp_path, ["background", "crack"], lambda labels: labels * 255)
    code, findings = check(cli, root)
    assert code == 1
    assert [finding["severity"] for finding in findings] == ["error", "error"]
    for part, finding in zip(("labeled", "validation"), findings, strict=True):
        assert f"{part} masks: no class but background occurs, while 10." in finding["message"]
        assert f"stands for crack: {REMEDY}--set data.mask_values=raw" in finding["message"]
    with pytest.raises(DataError, match="no class but background occurs"):
        prepare(root)
    remedied = {"names": ["background", "crack"], "raw_ids": [0, 255], "ignore_index": 254}
    (root / "classes.json").write_text(json.dumps(remedied))
    assert check(cli, root, "--set", "data.mask_values=raw") == (0, [])
    prepare(root, mask_values="raw")


def test_case_56_a_score_on_masks_of_0_and_255_says_what_it_leaves_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    truth, predictions = tmp_path / "truth", tmp_path / "predictions"
    for folder in (truth, predictions):
        folder.mkdir()
    for place in range(3):
        Image.fromarray(disc(14 + 4 * place, 16, 2) * 255).save(truth / f"{place}.png")
        Image.fromarray(disc(16 + 4 * place, 17, 2) * 255).save(predictions / f"{place}.png")
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"names": ["background", "crack"]}))
    wrong = score(masks_task(predictions, truth, None, classes=load_classes(str(path))), progress=iter)
    line = capfd.readouterr().err
    assert line.startswith("warning: ground truth: no class but background occurs, while 10.")
    assert f"{REMEDY}--mask-values raw" in line
    path.write_text(json.dumps({"names": ["background", "crack"], "raw_ids": [0, 255], "ignore_index": 254}))
    classes = load_classes(str(path))
    for values in (None, "raw"):  # as the remedy says, and as it is recognised
        task = masks_task(predictions, truth, None, classes=classes, values=values)
        right = score(task, progress=iter)
        assert capfd.readouterr().err == ""
        assert right.miou < 0.9 < wrong.miou


def test_case_56_a_class_without_a_pixel_while_many_are_ignored_is_said(cli: Cli, tmp_path: Path) -> None:
    def second_class_as_255(labels: UInt8Array) -> UInt8Array:
        labels[labels == 2] = 255
        labels[:6] = 255
        return labels

    root = write_data(tmp_path, ["background", "disc", "bar"], second_class_as_255)
    code, findings = check(cli, root)
    assert code == 0
    by_kind = {finding["kind"]: finding["message"] for finding in findings}
    assert set(by_kind) == {"ignored", "missing class"}
    assert "masks: bar does not occur, while 20.0% of the pixels are ignored (label 255)" in by_kind["ignored"]
    assert '"raw_ids": [0, 1, 255], "ignore_index": 254' in by_kind["ignored"]


def spoil_one_part(part: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        for path in (root / "masks" / part).iterdir():
            labels = np.array(Image.open(path))
            Image.fromarray(np.where(labels == 2, 0, labels)).save(path)

    return spoil


def ignore_much(root: Path) -> None:
    for path in (root / "masks/train").iterdir():
        labels = np.array(Image.open(path))
        labels[:12, :] = 255
        Image.fromarray(labels).save(path)


def sort_palettes(root: Path) -> None:
    """Save masks as an editor does that orders colours by how often they occur in a picture."""
    colors = np.array(voc_palette(3), np.uint8)
    for place, path in enumerate(sorted((root / "masks/train").iterdir())):
        order = np.array([(0, 1, 2), (1, 0, 2)][place % 2])
        image = Image.fromarray(order.astype(np.uint8)[np.array(Image.open(path))])
        flat = np.zeros((256, 3), np.uint8)
        flat[order] = colors
        image.putpalette(flat.ravel().tolist())
        image.save(path)


def store_as_jpeg(root: Path) -> None:
    for path in (root / "masks/train").iterdir():
        Image.fromarray(np.array(Image.open(path)) // 3).save(path, format="JPEG", quality=100)


def turn_upside_down(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(root / "images/train/a.jpg").save(root / "images/train/a.jpg", exif=exif, quality=95)


def use_12_bits(root: Path) -> None:
    (root / "images/train/a.jpg").unlink()
    grey = np.linspace(0, 4095, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    Image.fromarray(grey).save(root / "images/train/a.png")


WARNINGS = {
    "a class in no labeled image": (spoil_one_part("train"), "1 of 3 classes occur in no labeled image: bar"),
    "a class in no validation image": (spoil_one_part("val"), "1 of 3 classes occur in no validation image: bar"),
    "many ignored pixels": (ignore_much, "labeled masks: 30% of the pixels are ignored"),
    "palettes in different orders": (sort_palettes, "label 0 is shown as [0, 0, 0] in "),
    "JPEG": (store_as_jpeg, "2 masks are stored as JPEG, which changes labels at every edge: "),
    "an orientation": (turn_upside_down, "1 images with a mask are turned or mirrored by their EXIF orientation"),
    "12 bits": (use_12_bits, "16-bit values end at 4095 of 65535, so it becomes dark; if 12 bits are used: "),
}


@pytest.mark.parametrize("kind", WARNINGS)
def test_what_labels_and_files_say_is_a_warning_in_train_and_in_data_check(
    cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil, expected = WARNINGS[kind]
    root = write_data(tmp_path, ["background", "disc", "bar"])
    prepare(root)
    assert "warning" not in capfd.readouterr().err
    spoil(root)
    prepare(root)
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert any(expected in line for line in warnings), warnings
    code, findings = check(cli, root)
    assert code == 0
    assert any(expected in finding["message"] for finding in findings)


def test_the_share_of_ignored_pixels_stands_in_the_table(cli: Cli, tmp_path: Path) -> None:
    root = write_data(tmp_path, ["background", "disc", "bar"])
    ignore_much(root)
    arguments = ["data", "check", "folder", "--data", root, "--labels", root / "labeled.txt"]
    _, out, _ = cli([*arguments, "--set", "data.crop_px=32"])
    (row,) = [line for line in out.splitlines() if "(ignored" in line]
    assert "30.00" in row and "0.00" in row


def test_a_resumed_run_is_told_of_masks_that_changed(
    cli: Cli, toy_run: Path, toy_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_data, tmp_path / "data")
    shutil.copytree(toy_run, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace(str(toy_data), str(tmp_path / "data")))
    for path in (tmp_path / "data/SegmentationClass").iterdir():
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(path)
    code, _, err = cli(["train", "--resume", tmp_path / "run", "--iterations", 70])
    assert code == 1
    assert "error: labeled masks: no class but " in err


def test_nothing_is_concluded_from_masks_that_could_not_be_read(cli: Cli, tmp_path: Path) -> None:
    root = write_data(tmp_path, ["background", "disc", "bar"])
    (root / "masks/train/a.png").write_bytes(b"")
    spoil_one_part("val")(root)
    for path in (root / "masks/train").iterdir():
        if path.stem != "a":
            Image.new("L", SIZE[::-1]).save(path)
    code, findings = check(cli, root)
    assert code == 1
    messages = [finding["message"] for finding in findings]
    assert any("validation image: bar" in message for message in messages)
    assert not any("no labeled image" in message for message in messages)
    assert len(messages) == 2, messages


def test_a_class_in_one_part_alone_is_no_reason_to_doubt_what_is_ignored(cli: Cli, tmp_path: Path) -> None:
    root = write_data(tmp_path, ["background", "disc", "bar"])
    spoil_one_part("train")(root)
    for part in ("train", "val"):
        for path in (root / "masks" / part).iterdir():
            labels = np.array(Image.open(path))
            labels[:6] = 255  # 15 %
            Image.fromarray(labels).save(path)
    _, findings = check(cli, root)
    assert [finding["kind"] for finding in findings] == ["missing class"]


def test_a_kind_is_one_line_with_three_names_and_the_json_has_them_all(cli: Cli, tmp_path: Path) -> None:
    root = write_data(tmp_path, ["background", "disc", "bar"])
    for place in range(30):
        (root / f"images/train/bad{place:02d}.jpg").write_bytes(b"no image")
        shutil.copy(root / "images/train/c.jpg", root / f"images/train/copy{place:02d}.jpg")
    code, findings = check(cli, root)
    assert code == 1
    lines = {finding["kind"]: finding["message"] for finding in findings}
    assert set(lines) == {"unusable", "duplicate"} and len(findings) == 2
    assert "(and 29 more such files: bad01.jpg, bad02.jpg, bad03.jpg and 26 more)" in lines["unusable"]
    assert "one image 31 times: " in lines["duplicate"] and "and 28 more" in lines["duplicate"]
    assert all(len(line) < 600 for line in lines.values())
    assert sorted(len(finding["files"]) for finding in findings) == [30, 31]


def test_a_mask_stored_as_jpeg_with_labels_of_no_class_names_jpeg(tmp_path: Path) -> None:
    root = write_data(tmp_path, ["background", "disc"])
    Image.fromarray(disc(20, 20, 2) * 200).save(root / "masks/train/a.png", format="JPEG")
    with pytest.raises(DataError, match=r"a\.png has labels .*: it is stored as JPEG, which changes labels"):
        prepare(root)


def test_0_for_what_is_not_labeled_has_a_remedy_that_works(cli: Cli, tmp_path: Path) -> None:
    root = write_data(tmp_path, ["disc", "bar"])
    for name in IMAGES[:2] + IMAGES[3:]:
        Image.fromarray(disc(20, 16, 3)).save(root / f"masks/{name}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["disc", "bar"], "ignore_index": 0}))
    with pytest.raises(DataError, match=r'"raw_ids": \[1, 2\], and read masks with --set data\.mask_values=raw'):
        prepare(root)
    (root / "classes.json").write_text(json.dumps({"names": ["disc", "bar"], "raw_ids": [1, 2]}))
    code, findings = check(cli, root, "--set", "data.mask_values=raw")
    assert code == 0
    assert all("of the pixels are ignored" in finding["message"] for finding in findings)
