"""Layout `folder` with templates: data sets that lie as their makers left them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmtool.config import DataConfig
from gmtool.data.datasets import load_split, load_training_data
from gmtool.errors import ConfigError, DataError


def make(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((6, 8), np.uint8)).save(root / file)
    (root / "labeled.txt").write_text("a\n")
    return root


def config(root: Path, images: str, masks: str) -> DataConfig:
    return DataConfig(root, "folder", labeled=root / "labeled.txt", images=images, masks=masks)


STYLES = {
    "CamVid": (
        ("{part}/{id}.png", "{part}annot/{id}.png"),
        ["train/a.png", "train/b.png", "val/v.png", "test/t.png"],
        ["trainannot/a.png", "valannot/v.png", "testannot/t.png"],
        ["train/b"],
    ),
    "ADE": (
        ("images/{part}/{id}.jpg", "annotations/{part}/{id}.png"),
        ["images/training/a.jpg", "images/training/deep/b.jpg", "images/validation/v.jpg"],
        ["annotations/training/a.png", "annotations/validation/v.png"],
        ["training/deep/b"],
    ),
    "one folder": (
        ("{part}/{id}.*", "{part}/{id}_mask.png"),
        ["train/a.jpg", "train/b.JPG", "train/c.png", "val/v.jpg"],
        ["train/a_mask.png", "train/orphan_mask.png", "val/v_mask.png"],
        ["train/b", "train/c"],
    ),
    "masks have the plain name": (
        ("{part}/{id}_image.png", "{part}/{id}.png"),
        ["train/a_image.png", "train/b_image.png", "val/v_image.png"],
        ["train/a.png", "val/v.png"],
        ["train/b"],
    ),
    "suffixes tell": (
        ("{id}.jpg", "{id}.png"),
        ["train/a.jpg", "train/b.jpg", "val/v.jpg"],
        ["train/a.png", "val/v.png"],
        ["train/b"],
    ),
    "a folder each": (
        ("{part}/{id}/{id}.jpg", "{part}/{id}/label.png"),
        ["train/a/a.jpg", "train/b/b.jpg", "val/v/v.jpg"],
        ["train/a/label.png", "val/v/label.png"],
        ["train/b"],
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_published_ways_to_lay_out_images_and_masks(tmp_path: Path, style: str) -> None:
    templates, images, masks, unlabeled = STYLES[style]
    data = load_training_data(config(make(tmp_path, *images, *masks), *templates))
    (labeled,), (val,) = data.labeled.samples, data.val.samples
    assert (labeled.image_path, labeled.mask) == (tmp_path / images[0], tmp_path / masks[0])
    assert val.image_path in [tmp_path / image for image in images]
    assert isinstance(val.mask, Path) and val.mask.is_file()
    assert [sample.id for sample in data.unlabeled.samples] == unlabeled


def test_one_pool_without_parts_needs_lists(tmp_path: Path) -> None:
    make(tmp_path, "x/a.jpg", "x/b.jpg", "x/a_mask.png")
    pool = config(tmp_path, "x/{id}.jpg", "x/{id}_mask.png")
    (sample,) = load_split(pool, "train", tmp_path / "labeled.txt").samples
    assert sample.id == "a"
    with pytest.raises(DataError, match="give --val LIST"):
        load_training_data(pool)


MISTAKES: dict[str, tuple[Sequence[str], str]] = {
    "no id": (("images/x.png", "masks/{id}.png"), r"data.images=images/x.png: expected {id}"),
    "an unknown field": (("images/{name}.png", "masks/{id}.png"), r"unknown field {name}; known: {id}, {part}"),
    "a format": (("images/{id:d}.png", "masks/{id}.png"), r"unknown field {id:d}; known: {id}, {part}"),
    "an open bracket": (("images/{id.png", "masks/{id}.png"), r"data.images=images/{id.png: "),
    "no suffix": (("images/{id}", "masks/{id}.png"), r"expected a file suffix"),
    "a part only in masks": (
        ("images/{id}.png", "{part}/{id}.png"),
        r"data.masks=.* has {part}, but data.images=",
    ),
    "the same files": (("x/{id}.png", "x/{id}.png"), "expected different paths"),
    "any suffix of masks": (("images/{id}.*", "masks/{id}.*"), "masks have one suffix"),
    "out of the folder": (("../{id}.png", "masks/{id}.png"), "expected a path below"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_template_is_one_line(tmp_path: Path, mistake: str) -> None:
    templates, expected = MISTAKES[mistake]
    make(tmp_path, "images/a.png", "masks/a.png")
    with pytest.raises(ConfigError, match=expected) as error:
        load_split(config(tmp_path, *templates), "train", None)
    assert "\n" not in str(error.value)


def test_a_missing_folder_names_the_template_and_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, "pictures/a.png")
    with pytest.raises(DataError, match="expected images in it, found pictures"):
        load_split(config(tmp_path, "images/{id}.png", "masks/{id}.png"), "train", None)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "images/a.png", "images/a.jpg")
    with pytest.raises(DataError, match="differ only in their suffix: keep one"):
        load_split(config(tmp_path, "images/{id}.*", "masks/{id}.png"), "train", None)
