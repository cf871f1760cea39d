"""Every kind of data set trains from a fixture in its true layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, Cli
from PIL import Image
from pycocotools import mask as coco_mask

from gmtool.classes import load_classes

FLAGS = [
    item for name, value in SMALL.items() if name != "optim.iterations" for item in ("--set", f"{name}={value}")
]


def ids(toy: Path, part: str) -> list[str]:
    return (toy / "ImageSets/Segmentation" / f"{part}.txt").read_text().split()


def toy_mask(toy: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(toy / "SegmentationClass" / f"{name}.png"))


def as_cityscapes(toy: Path, root: Path) -> None:
    """Nested cities, PNG images, labelIds; void pixels have label id 0."""
    raw_ids = np.array(load_classes("cityscapes").raw_ids, dtype=np.uint8)
    for part in ("train", "val"):
        for index, name in enumerate(ids(toy, part)):
            city = ("aachen", "bochum", "ulm")[index % 3] if part == "train" else "lindau"
            base = f"{city}_{index:06d}_000019"
            image = root / "leftImg8bit" / part / city / f"{base}_leftImg8bit.png"
            mask = root / "gtFine" / part / city / f"{base}_gtFine_labelIds.png"
            for path in (image, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(toy / "JPEGImages" / f"{name}.jpg").save(image)
            labels = raw_ids[toy_mask(toy, name)]
            labels[:2] = 0
            Image.fromarray(labels).save(mask)
            if part == "train" and index >= 8:
                mask.unlink()  # unlabeled images have none
    lines = [f"aachen_{index:06d}_000019\n" for index in (0, 3, 6)]
    (root / "labeled.txt").write_text("".join(lines))


def as_context(toy: Path, root: Path) -> None:
    """VOC 2010 images, masks and lists in folders of PASCAL Context's own."""
    shutil.copytree(toy / "JPEGImages", root / "VOCdevkit/VOC2010/JPEGImages")
    shutil.copytree(toy / "SegmentationClass", root / "VOCdevkit/VOC2010/SegmentationClassContext")
    shutil.copytree(toy / "ImageSets/Segmentation", root / "VOCdevkit/VOC2010/ImageSets/SegmentationContext")
    shutil.copy(toy / "splits/labeled.txt", root)


def as_voc_with_sbd(toy: Path, root: Path) -> None:
    """The official train list is short; SBD's list and masks hold the rest."""
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    shutil.copytree(toy / "JPEGImages", root / "JPEGImages")
    shutil.copytree(toy / "SegmentationClass", root / "SegmentationClassAug")
    shutil.copy(toy / "ImageSets/Segmentation/train.txt", root / "ImageSets/Segmentation/trainaug.txt")
    shutil.copy(toy / "ImageSets/Segmentation/val.txt", root / "ImageSets/Segmentation")
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in ids(toy, "train")[:6]]
    (root / "labeled.txt").write_text("".join(lines))


def as_camvid(toy: Path, root: Path) -> None:
    """Images in train/, colour-coded masks in trainannot/, likewise for val; borders in a colour of no class."""
    classes = json.loads((toy / "classes.json").read_text())
    classes["ignore_colors"] = [[224, 224, 192], [1, 2, 3]]
    (root / "classes.json").write_text(json.dumps(classes))
    palette = np.array(load_classes(str(root / "classes.json")).palette, dtype=np.uint8)
    for part in ("train", "val"):
        (root / part).mkdir()
        (root / f"{part}annot").mkdir()
        for index, name in enumerate(ids(toy, part)):
            Image.open(toy / "JPEGImages" / f"{name}.jpg").save(root / part / f"{name}.png")
            colors = palette[toy_mask(toy, name)]
            colors[:2] = (1, 2, 3)
            if part == "val" or index < 5:  # unlabeled images have none
                Image.fromarray(colors).save(root / f"{part}annot" / f"{name}.png")
    (root / "labeled.txt").write_text("".join(f"{name}\n" for name in ids(toy, "train")[:5]))


CAMVID_FLAGS = ["--set", "data.images={part}/{id}.png", "--set", "data.masks={part}annot/{id}.png"]
CAMVID_FLAGS += ["--set", "data.mask_values=color"]


def as_coco(toy: Path, root: Path) -> None:
    """One object a class: its box as a polygon, or its pixels, with holes, as RLE of either form; some crowds."""
    names = load_classes(str(toy / "classes.json")).names
    (root / "annotations").mkdir()
    number = 0
    for part in ("train", "val"):
        (root / f"{part}2017").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, name in enumerate(ids(toy, part)):
            shutil.copy(toy / "JPEGImages" / f"{name}.jpg", root / f"{part}2017")
            labels = toy_mask(toy, name)
            height, width = labels.shape
            images.append({"id": index, "file_name": f"{name}.jpg", "height": height, "width": width})
            for label in range(1, len(names)):
                mask = labels == label
                if not mask.any():
                    continue
                number += 1
                common = {"id": number, "image_id": index, "category_id": 10 * label, "iscrowd": number % 2}
                annotations.append(common | {"segmentation": segmentation_of(mask, kind=number % 3)})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 10 * label, "name": names[label]} for label in range(1, len(names))],
        }
        (root / f"annotations/instances_{part}2017.json").write_text(json.dumps(content))
    (root / "labeled.txt").write_text("".join(f"{name}\n" for name in ids(toy, "train")[:7]))


def segmentation_of(mask: np.ndarray, *, kind: int) -> Any:
    if kind == 0:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, bottom, left, right = (int(edge) for edge in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
        return [[left, top, right, top, right, bottom, left, bottom]]
    if kind == 1:
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    flat = mask.ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


SBD_FLAGS = ["--set", "data.mask_dir=SegmentationClassAug"]
SBD_FLAGS += ["--set", "data.train_list=ImageSets/Segmentation/trainaug.txt"]

KINDS = {
    "cityscapes": ("cityscapes", as_cityscapes, [], "3 labeled", "17 unlabeled", "19 classes"),
    "context": ("context", as_context, [], "8 labeled", "12 unlabeled", "60 classes"),
    "folder with templates": (
        "folder",
        as_camvid,
        CAMVID_FLAGS,
        "5 labeled",
        "15 unlabeled",
        "6 classes",
    ),
    "coco": ("coco", as_coco, [], "7 labeled", "13 unlabeled", "6 classes"),
    "voc-aug": ("voc-aug", as_voc_with_sbd, [], "6 labeled", "14 unlabeled", "21 classes"),
    "voc with SBD": ("voc", as_voc_with_sbd, SBD_FLAGS, "6 labeled", "14 unlabeled", "21 classes"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_trains_from_its_true_layout(cli: Cli, toy_data: Path, tmp_path: Path, name: str) -> None:
    kind, convert, flags, *expected = KINDS[name]
    root = tmp_path / "data"
    root.mkdir()
    convert(toy_data, root)
    places = ["--data", root, "--labels", root / "labeled.txt", "--out", tmp_path / "run"]
    code, out, err = cli(["train", kind, *places, "--iterations", "20", *FLAGS, *flags])
    assert code == 0, err
    for text in (*expected, " 4 validation"):
        assert text in err
    assert "4 images scored, 0 failed" in out


def test_coco_from_its_check_to_its_score(cli: Cli, toy_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    as_coco(toy_data, root)
    place = ["coco", "--data", root]
    code, out, _ = cli(
        ["data", "check", *place, "--labels", root / "labeled.txt", "--set", "data.crop_px=32", "--json"]
    )
    report = json.loads(out)
    assert (code, report["errors"]) == (0, 0)
    assert report["images"] == {"labeled": 7, "unlabeled": 13, "validation": 4}
    assert sum(row["labeled_pixels"] for row in report["classes"]) == 7 * 48 * 64
    code, _, err = cli(["data", "split", *place, "--count", "6", "--out", tmp_path / "split"])
    assert code == 0, err
    labels = ["--labels", tmp_path / "split/labeled.txt", "--set", "method.name=supervised"]
    labels += ["--set", "model.decoder=pyramid"]
    code, _, err = cli(["train", *place, *labels, "--iterations", "8", *FLAGS, "--out", tmp_path / "run"])
    assert code == 0, err
    assert cli(["export", tmp_path / "run", "--allow-few-classes"])[0] == 0
    model = ["evaluate", "--model", tmp_path / "run/export/model_fp32.onnx", "--json"]
    code, of_run, err = cli(model)
    assert code == 0, err
    (root / "annotations/instances_train2017.json").unlink()  # not needed to score
    moved = {"data.val_annotations": "val.json", "data.val_images": "pictures"}
    (root / "annotations/instances_val2017.json").rename(root / "val.json")
    (root / "val2017").rename(root / "pictures")
    settings = [item for name, value in moved.items() for item in ("--set", f"{name}={value}")]
    code, of_data, err = cli([*model, "--data", root, "--layout", "coco", *settings])
    assert code == 0, err
    scores = [json.loads(text) for text in (of_run, of_data)]
    assert scores[0]["num_images"] == 4
    assert scores[0]["confusion_matrix"] == scores[1]["confusion_matrix"]
    code, _, err = cli([*model, "--set", "optim.lr=1"])
    assert code == 2 and "only settings of the data apply" in err
