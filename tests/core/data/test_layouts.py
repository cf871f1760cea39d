"""Each data layout fulfils the contract of layouts."""

import json
from pathlib import Path
from typing import get_args

import pytest
from layout_contract import LayoutContract, draw

from gmtool.classes import load_classes
from gmtool.config import DataConfig, LayoutName
from gmtool.data.toy import ToyConfig, generate_toy

SBD = "/JPEGImages/a.jpg /SegmentationClass/a.png"


class TestVoc(LayoutContract):
    stems = ("a", "b", "c", "v")
    forms = ("a", "a.jpg", "JPEGImages/a.jpg", SBD, SBD.replace(" ", "\t"), SBD.replace("/", "//"))
    labels = (15,)

    @pytest.fixture
    def config(self, tmp_path: Path) -> DataConfig:
        root = tmp_path / "VOC2012"
        for stem in self.stems:
            draw(root / f"JPEGImages/{stem}.jpg")
            draw(root / f"SegmentationClass/{stem}.png", 15)
        (root / "ImageSets/Segmentation").mkdir(parents=True)
        (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\nc\n")
        (root / "ImageSets/Segmentation/val.txt").write_text("v\n")
        return DataConfig(root)


class TestCityscapes(LayoutContract):
    stems = tuple(f"{name}_leftImg8bit" for name in ("aachen_0_19", "aachen_0_20", "bochum_0_3", "lindau_0_1"))
    forms = (
        "aachen_0_19",
        "aachen_0_19_leftImg8bit.png",
        "train/aachen/aachen_0_19_leftImg8bit",
        "leftImg8bit/train/aachen/aachen_0_19_leftImg8bit.png",
        "/leftImg8bit/train/aachen/aachen_0_19_leftImg8bit.png "
        "/gtFine/train/aachen/aachen_0_19_gtFine_labelIds.png",
    )
    labels = (load_classes("cityscapes").names.index("car"),)

    @pytest.fixture
    def config(self, tmp_path: Path) -> DataConfig:
        root = tmp_path / "cityscapes"
        for stem in self.stems:
            place = f"{'val' if stem.startswith('lindau') else 'train'}/{stem.partition('_')[0]}"
            draw(root / f"leftImg8bit/{place}/{stem}.png")
            draw(root / f"gtFine/{place}/{stem.replace('leftImg8bit', 'gtFine_labelIds')}.png", 26)
        return DataConfig(root, "cityscapes", "cityscapes", mask_values="raw")


class TestFolder(LayoutContract):
    stems = ("a", "c", "b", "v")  # b lies in a sub-folder
    forms = ("a", "train/a", "train/a.jpg", "images/train/a.jpg", "images/train/a.jpg masks/train/a.png")
    labels = (1,)

    @pytest.fixture
    def config(self, tmp_path: Path) -> DataConfig:
        root = tmp_path / "mine"
        for name in ("train/a", "train/city/b", "train/c", "val/v"):
            draw(root / f"images/{name}.jpg")
            draw(root / f"masks/{name}.png", 1)
        return DataConfig(root, "folder")


class TestCoco(LayoutContract):
    stems = ("01", "02", "03", "09")
    forms = ("01", "01.jpg", "train2017/01", "train2017/01.jpg")
    labels = (0, 1)
    missing = "does not exist"  # an image without objects is background

    @pytest.fixture
    def config(self, tmp_path: Path) -> DataConfig:
        root = tmp_path / "coco"
        for part, images in (("train", self.stems[:3]), ("val", self.stems[3:])):
            for stem in images:
                draw(root / f"{part}2017/{stem}.jpg")
            object_of = {"category_id": 7, "segmentation": [[1, 1, 6, 1, 6, 4]], "iscrowd": 0}
            document = {
                "images": [{"id": int(s), "file_name": f"{s}.jpg", "height": 6, "width": 8} for s in images],
                "annotations": [{"id": int(stem), "image_id": int(stem)} | object_of for stem in images[:2]],
                "categories": [{"id": 7, "name": "lamp"}],
            }
            (root / "annotations").mkdir(exist_ok=True)
            (root / f"annotations/instances_{part}2017.json").write_text(json.dumps(document))
        return DataConfig(root, "coco", classes=str(root / "annotations/instances_train2017.json"))


class TestToy(LayoutContract):
    stems = ("toy_00000", "toy_00001", "toy_00002", "toy_00003")
    forms = ("toy_00000", "JPEGImages/toy_00000.jpg")
    labels = range(6)

    @pytest.fixture
    def config(self, tmp_path: Path) -> DataConfig:
        generate_toy(tmp_path / "toy", ToyConfig(labeled=1, unlabeled=2, val=1, height_px=24, width_px=32))
        return DataConfig(tmp_path / "toy", classes=str(tmp_path / "toy/classes.json"))


def test_every_layout_fulfils_the_contract() -> None:
    members = [member.__name__.removeprefix("Test").lower() for member in LayoutContract.__subclasses__()]
    assert set(members) == {*get_args(LayoutName), "toy"}
