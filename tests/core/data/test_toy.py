from pathlib import Path

import numpy as np
import pytest

from gmtool.data.toy import CLASSES, ToyConfig, draw_sample, generate_toy
from gmtool.errors import DataError
from gmtool.files import sha256_of_file
from gmtool.images import read_image
from gmtool.masks.files import read_mask

SMALL = ToyConfig(labeled=2, unlabeled=2, val=1, height_px=24, width_px=32)


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        generate_toy(tmp_path / name, SMALL)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len([path for path in files if path.suffix == ".jpg"]) == 5
    for path in files:
        assert sha256_of_file(tmp_path / "one" / path) == sha256_of_file(tmp_path / "two" / path)


def test_images_and_masks_fit_and_every_class_occurs(tmp_path: Path) -> None:
    generate_toy(tmp_path / "data", SMALL)
    for path in (tmp_path / "data/JPEGImages").iterdir():
        mask = read_mask(tmp_path / "data/SegmentationClass" / f"{path.stem}.png", CLASSES)
        assert read_image(path).shape[:2] == mask.shape == (24, 32)
    labels = [draw_sample(np.random.default_rng(seed), ToyConfig())[1] for seed in range(20)]
    assert set(np.unique(labels)) == set(range(len(CLASSES)))


def test_existing_data_is_kept_and_foreign_folders_are_not_touched(tmp_path: Path) -> None:
    root = tmp_path / "data"
    generate_toy(root, SMALL)
    before = (root / "toy.json").stat().st_mtime_ns
    generate_toy(root, SMALL)
    assert (root / "toy.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="is not this toy data set"):
        generate_toy(root, ToyConfig(seed=1))
