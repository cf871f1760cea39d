import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmtool.classes import load_classes
from gmtool.config import DataConfig, MaskValues
from gmtool.data.datasets import load_split, load_training_data
from gmtool.errors import DataError
from gmtool.masks.files import read_mask


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Four training images a-d with masks, one validation image v, in VOC layout."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in "abcdv":
        Image.new("RGB", (8, 6)).save(root / "JPEGImages" / f"{name}.jpg")
        for masks in ("SegmentationClass", "SegmentationClassAug"):
            Image.fromarray(np.zeros((6, 8), np.uint8)).save(root / masks / f"{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\nc\nd\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("v\n")
    (root / "labeled.txt").write_text("/JPEGImages/a.jpg /SegmentationClass/a.png\n")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images and masks in images/{train,val}/ and masks/{train,val}/, some in a sub-folder."""
    root = tmp_path / "mine"
    for name in ("train/a", "train/city/b", "train/c", "val/v"):
        for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
            path = root / kind / (name + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((6, 8), np.uint8)).save(path)
    (root / "labeled.txt").write_text("a\n")
    return root


def names(samples: tuple[object, ...]) -> list[str]:
    return [sample.image_path.stem for sample in samples]  # type: ignore[attr-defined]


def test_voc_root_may_be_the_devkit(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit").mkdir()
    shutil.move(voc, tmp_path / "VOCdevkit" / "VOC2012")
    split = load_split(DataConfig(root=tmp_path), "val", None)
    assert names(split.samples) == ["v"]


def test_unlabeled_images_need_no_mask(voc: Path) -> None:
    for name in "bcd":
        (voc / "SegmentationClass" / f"{name}.png").unlink()
    data = load_training_data(DataConfig(root=voc, labeled=voc / "labeled.txt"))
    assert len(data.unlabeled.samples) == 3


def test_unlabeled_images_may_lie_in_any_folder(voc: Path, tmp_path: Path) -> None:
    for name in ("x.jpg", "deep/y.png"):
        path = tmp_path / "camera" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(path)
    data = load_training_data(DataConfig(voc, labeled=voc / "labeled.txt", unlabeled=tmp_path / "camera"))
    assert [sample.id for sample in data.unlabeled.samples] == ["deep/y", "x"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images; expected"):
        load_training_data(DataConfig(voc, labeled=voc / "labeled.txt", unlabeled=tmp_path / "empty"))


def test_masks_of_two_folders_are_not_mixed(voc: Path) -> None:
    (voc / "labeled.txt").write_text("JPEGImages/a.jpg SegmentationClassAug/a.png\n")
    with pytest.raises(DataError, match="data.mask_dir=SegmentationClassAug"):
        load_training_data(DataConfig(root=voc, labeled=voc / "labeled.txt"))
    data = load_training_data(DataConfig(root=voc, labeled=voc / "labeled.txt", mask_dir="SegmentationClassAug"))
    assert data.labeled.samples[0].mask == voc / "SegmentationClassAug" / "a.png"


def test_a_file_in_the_place_of_a_mask_is_named(voc: Path) -> None:
    (voc / "SegmentationClass" / "a.png").unlink()
    (voc / "labeled.txt").write_text("a\n")
    (voc / "SegmentationClass" / "a.jpg").touch()
    with pytest.raises(DataError, match=r"a\.jpg has no mask: expected .*a\.png, found a\.jpg$"):
        load_training_data(DataConfig(root=voc, labeled=voc / "labeled.txt"))


@pytest.mark.parametrize("which", ["labeled", "unlabeled"])
def test_training_images_may_not_be_validation_images(voc: Path, which: str) -> None:
    (voc / "more.txt").write_text("b\nv\n")
    config = replace(DataConfig(root=voc, labeled=voc / "labeled.txt"), **{which: voc / "more.txt"})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"share 1 images, for example v\.jpg"):
        load_training_data(config)


def test_the_wrong_layout_is_recognised(voc: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="not a data set of layout folder.*is it of layout voc"):
        load_training_data(DataConfig(root=voc, layout="folder"))
    with pytest.raises(DataError, match="not a data set of layout voc.*found images, masks"):
        load_training_data(DataConfig(root=folder, layout="voc"))


def test_folder_layout_without_parts_asks_for_a_list(folder: Path) -> None:
    shutil.rmtree(folder / "images/val")
    with pytest.raises(DataError, match="--val LIST"):
        load_training_data(DataConfig(root=folder, layout="folder", labeled=folder / "labeled.txt"))


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Two cities for training and one for validation, both kinds of masks, in the official layout."""
    root = tmp_path / "cityscapes"
    for name in (
        "train/aachen/aachen_000000_000019",
        "train/bochum/bochum_000000_000313",
        "val/lindau/lindau_0_1",
    ):
        files = {
            f"leftImg8bit/{name}_leftImg8bit.png": (0, "RGB"),
            f"gtFine/{name}_gtFine_labelIds.png": (26, "L"),
            f"gtFine/{name}_gtFine_labelTrainIds.png": (13, "L"),
        }
        for file, (value, mode) in files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (8, 6), value).save(root / file)
    return root


@pytest.mark.parametrize("values", ["raw", "index"])
def test_both_kinds_of_cityscapes_masks_give_the_same_classes(cityscapes: Path, values: MaskValues) -> None:
    config = DataConfig(cityscapes, "cityscapes", "cityscapes", mask_values=values)
    (sample,) = load_split(config, "val", None).samples
    assert isinstance(sample.mask, Path)
    mask = read_mask(sample.mask, load_classes("cityscapes"), values=values)
    assert set(mask.ravel().tolist()) == {load_classes("cityscapes").names.index("car")}


def test_cityscapes_frames_of_one_name_are_refused(cityscapes: Path) -> None:
    shutil.copytree(cityscapes / "leftImg8bit/train/aachen", cityscapes / "leftImg8bit/val/aachen")
    with pytest.raises(DataError, match="two images have one file name"):
        load_split(DataConfig(cityscapes, "cityscapes", "cityscapes"), "val", None)


def test_a_list_of_the_other_kind_of_cityscapes_masks_is_refused(cityscapes: Path) -> None:
    (cityscapes / "list.txt").write_text(
        "/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png "
        "/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    )
    config = DataConfig(cityscapes, "cityscapes", "cityscapes", cityscapes / "list.txt", mask_values="index")
    with pytest.raises(DataError, match="data.mask_values=raw reads labelIds files"):
        load_training_data(config)


def test_voc_takes_sbds_list_and_masks(voc: Path) -> None:
    shutil.move(voc / "ImageSets/Segmentation/train.txt", voc / "ImageSets/Segmentation/trainaug.txt")
    config = DataConfig(voc, mask_dir="SegmentationClassAug", train_list="ImageSets/Segmentation/trainaug.txt")
    split = load_split(config, "train", None)
    assert [sample.id for sample in split.samples] == ["a", "b", "c", "d"]
    assert split.samples[0].mask == voc / "SegmentationClassAug/a.png"
    with pytest.raises(DataError, match=r"has no ImageSets/Segmentation/train\.txt: give --labels"):
        load_split(DataConfig(voc), "train", None)


def test_the_split_hash_does_not_depend_on_how_a_list_writes_its_images(voc: Path) -> None:
    config = DataConfig(root=voc)
    (voc / "ids.txt").write_text("a\nb\n")
    (voc / "columns.txt").write_text("".join(f"/JPEGImages/{i}.jpg /SegmentationClass/{i}.png\n" for i in "ab"))
    splits = [load_split(config, "train", voc / name) for name in ("ids.txt", "columns.txt")]
    assert splits[0].samples == splits[1].samples
    assert splits[0].sha256 == splits[1].sha256


def test_the_split_hash_depends_on_names_and_order(voc: Path) -> None:
    config = DataConfig(root=voc)
    (voc / "ab.txt").write_text("a\nb\n")
    (voc / "ba.txt").write_text("b\na\n")
    hashes = {load_split(config, "train", path).sha256 for path in (None, voc / "ab.txt", voc / "ba.txt")}
    assert len(hashes) == 3
