"""Contract of every data layout: inherit `LayoutContract` and write a small data set."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from gmtool.classes import load_classes
from gmtool.config import DataConfig
from gmtool.data.datasets import Split, load_split, load_training_data
from gmtool.data.ground_truth import read_truth
from gmtool.errors import DataError


def draw(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(path)


def stems(split: Split) -> list[str]:
    return [sample.image_path.stem for sample in split.samples]


class LayoutContract:
    """What holds for every layout. `stems` are of three training images and one to validate with, in order."""

    stems: ClassVar[Sequence[str]]
    forms: ClassVar[Sequence[str]]
    """What published lists call the first training image."""
    labels: ClassVar[Sequence[int]]
    missing: ClassVar[str] = "has no mask: expected"

    @pytest.fixture
    def config(self, tmp_path: Path) -> DataConfig:
        raise NotImplementedError

    def listed(self, config: DataConfig, text: str) -> DataConfig:
        (config.root / "list.txt").write_text(text, encoding="utf-8", newline="")
        return replace(config, labeled=config.root / "list.txt")

    def test_its_parts_have_images_and_masks_of_one_size(self, config: DataConfig) -> None:
        train, val = load_split(config, "train", None), load_split(config, "val", None)
        assert stems(train) + stems(val) == list(self.stems)
        for sample in train.samples + val.samples:
            mask = read_truth(sample, load_classes(config.classes), values=config.mask_values)
            assert mask.shape == sample.read_image().shape[:2] and set(np.unique(mask)) <= set(self.labels)

    def test_a_list_of_any_form_leaves_the_rest_unlabeled(self, config: DataConfig) -> None:
        for text in (line.format(form) for form in self.forms for line in ("{}\n", "\ufeff{}\r\n\r\n")):
            data = load_training_data(self.listed(config, text))
            found = [stems(split) for split in (data.labeled, data.unlabeled, data.val)]
            assert found == [list(self.stems[:1]), list(self.stems[1:3]), list(self.stems[3:])], text
            assert all(sample.mask is None for sample in data.unlabeled.samples)

    def test_hidden_files_are_left_out(self, config: DataConfig) -> None:
        for folder in [path for path in config.root.rglob("*") if path.is_dir()]:
            for name in ("._a.jpg", "._a.png", ".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg"):
                draw(folder / name)
        self.test_its_parts_have_images_and_masks_of_one_size(config)

    def test_unlabeled_images_may_lie_in_any_folder(self, config: DataConfig, tmp_path: Path) -> None:
        draw(tmp_path / "camera/x.jpg")
        data = load_training_data(replace(self.listed(config, self.forms[0]), unlabeled=tmp_path / "camera"))
        assert stems(data.unlabeled) == ["x"] and data.unlabeled.samples[0].mask is None

    def test_what_is_missing_is_named(self, config: DataConfig, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"list\.txt:1: no image zebra"):
            load_training_data(self.listed(config, "zebra"))
        sample = load_split(config, "train", None).samples[0]
        (sample.mask if isinstance(sample.mask, Path) else sample.image_path).unlink()
        with pytest.raises(DataError, match=rf"image .*{self.stems[0]}\.\w+ {self.missing}"):
            load_training_data(self.listed(config, self.forms[0]))
        shutil.rmtree(config.root)
        with pytest.raises(DataError, match="does not exist"):
            load_training_data(config)
