"""Every kind of data set trains from a fixture in its true layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, Cli
from PIL import Image

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


SBD_FLAGS = ["--set", "data.mask_dir=SegmentationClassAug"]
SBD_FLAGS += ["--set", "data.train_list=ImageSets/Segmentation/trainaug.txt"]

KINDS = {
    "cityscapes": ("cityscapes", as_cityscapes, [], "3 labeled", "17 unlabeled, 4 validation", "19 classes"),
    "context": ("context", as_context, [], "8 labeled", "12 unlabeled, 4 validation", "60 classes"),
    "voc with SBD": ("voc", as_voc_with_sbd, SBD_FLAGS, "6 labeled", "14 unlabeled, 4 validation", "21 classes"),
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
    for text in expected:
        assert text in err
    assert "4 images scored, 0 failed" in out
