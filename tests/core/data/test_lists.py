"""Lists as people make them, and parts that no list names."""

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmtool.config import DataConfig
from gmtool.data.datasets import load_training_data
from gmtool.data.folds import choose_folds
from gmtool.data.samples import Sample
from gmtool.data.splitting import Candidate
from gmtool.errors import DataError, UsageError

NAMES = ["p4", "p5", "Bild 0 (1)", "a, b", "Straße-Ü"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images with masks whose names have spaces, a comma and decomposed letters; v is for validation."""
    root = tmp_path / "data"
    for name in (*(f"train/{name}" for name in [*NAMES, "p6"]), "val/v"):
        for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
            path = root / kind / unicodedata.normalize("NFD", name + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((6, 8), np.uint8)).save(path)
    return root


FORMS: dict[str, Callable[[str, Path], str]] = {
    "ids": lambda name, root: name,
    "quoted": lambda name, root: f'"{name}"',
    "paths": lambda name, root: f"images/train/{name}.jpg",
    "backslashes": lambda name, root: f"images\\train\\{name}.jpg",
    "absolute": lambda name, root: f"{root}/images/train/{name}.jpg",
    "working directory": lambda name, root: f"data/images/train/{name}.jpg",
    "masks": lambda name, root: f"masks/train/{name}.png",
    "comma": lambda name, root: f"images/train/{name}.jpg,masks/train/{name}.png",
    "quoted columns": lambda name, root: f'"images/train/{name}.jpg","masks/train/{name}.png"',
    "space": lambda name, root: f"images/train/{name}.jpg masks/train/{name}.png",
    "tab": lambda name, root: f"{root}/images/train/{name}.jpg\t{root}/masks/train/{name}.png",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_images_are_found_however_a_list_writes_them(
    root: Path, form: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    head = "image,mask\r\n" if "," in FORMS[form]("x", root) else "# labeled in spring\r\n"
    text = head + "".join(f"{FORMS[form](name, root)}\r\n" for name in NAMES)
    (root / "list.txt").write_bytes(unicodedata.normalize("NFC", text).encode(encoding))
    data = load_training_data(DataConfig(root, layout="folder", labeled=root / "list.txt"))
    found = [unicodedata.normalize("NFC", sample.id.removeprefix("train/")) for sample in data.labeled.samples]
    assert found == NAMES
    assert all(isinstance(sample.mask, Path) and sample.mask.is_file() for sample in data.labeled.samples)
    assert [sample.id for sample in data.unlabeled.samples] == ["train/p6"]


def test_names_that_are_not_there_come_with_line_count_and_the_closest(root: Path) -> None:
    (root / "list.txt").write_text("p4\np66\nP5.JPG\n")
    with pytest.raises(DataError) as raised:
        load_training_data(DataConfig(root, layout="folder", labeled=root / "list.txt"))
    line = str(raised.value)
    assert f"{root / 'list.txt'}:2: no image p66 below {root / 'images'} (2 of its 3 names are missing)" in line
    assert line.endswith("; the closest is train/p6")
    (root / "list.txt").write_text("P5.JPG\n")
    with pytest.raises(DataError, match=r"list\.txt:1: no image P5\.JPG below .*images; the closest is train/p5$"):
        load_training_data(DataConfig(root, layout="folder", labeled=root / "list.txt"))


def test_a_list_in_another_encoding_is_one_line(root: Path) -> None:
    (root / "list.txt").write_bytes("Straße\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"list\.txt is not text in UTF-8 or UTF-16: save it as UTF-8$"):
        load_training_data(DataConfig(root, layout="folder", labeled=root / "list.txt"))
    with pytest.raises(DataError, match=r"images is a folder: expected a text file with one image a line"):
        load_training_data(DataConfig(root, layout="folder", labeled=root / "images"))


@pytest.fixture
def pool(tmp_path: Path) -> DataConfig:
    """One folder of eight images, masks for 0 to 4."""
    for name in range(8):
        for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
            (tmp_path / kind).mkdir(exist_ok=True)
            if kind == "images" or name < 5:
                Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / kind / f"{name}{suffix}")
    (tmp_path / "labeled.txt").write_text("0\n1\n2\n")
    (tmp_path / "val.txt").write_text("3\n4\n")
    return DataConfig(tmp_path, layout="folder", val=tmp_path / "val.txt")


def ids(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.id for sample in samples]


def test_the_rest_of_a_pool_is_unlabeled(pool: DataConfig) -> None:
    data = load_training_data(replace(pool, labeled=pool.root / "labeled.txt"))
    assert ids(data.unlabeled.samples) == ["5", "6", "7"]
    assert data.unlabeled.name == f"{pool.root / 'images'} without labeled.txt and val.txt"
    of_folder = replace(pool, labeled=pool.root / "labeled.txt", unlabeled=pool.root / "images")
    assert ids(load_training_data(of_folder).unlabeled.samples) == ["5", "6", "7"]


def test_images_with_a_mask_are_labeled_if_no_list_says_which(pool: DataConfig) -> None:
    data = load_training_data(pool)
    assert (ids(data.labeled.samples), ids(data.unlabeled.samples)) == (["0", "1", "2"], ["5", "6", "7"])
    assert "5 of 8 images of " in data.labeled.name


def test_only_two_lists_that_overlap_are_refused(pool: DataConfig) -> None:
    (pool.root / "more.txt").write_text("4\n5\n")
    with pytest.raises(DataError, match=r"more\.txt and .*val\.txt share 1 images.*take them out of one"):
        load_training_data(replace(pool, labeled=pool.root / "labeled.txt", unlabeled=pool.root / "more.txt"))


def test_folds_keep_every_image_out_once_and_spread_classes() -> None:
    kinds = [{0, 1}] * 12 + [{0, 2}] * 4 + [{3}] * 4
    candidates = [
        Candidate(Sample(f"s{n // 2}_{n}", Path(f"{n}.jpg"), None), frozenset(labels))
        for n, labels in enumerate(kinds)
    ]
    folds = choose_folds(candidates, 4, seed=0)
    assert Counter(sample.id for fold in folds for sample in fold.val) == Counter(
        one.sample.id for one in candidates
    )
    of = {one.sample.id: one.classes for one in candidates}
    for fold in folds:
        assert not set(ids(fold.val)) & set(ids(fold.labeled)) and len(fold.val) + len(fold.labeled) == 20
        assert set().union(*(of[sample.id] for sample in fold.val)) == {0, 1, 2, 3}
    assert choose_folds(candidates, 4, seed=0) == folds != choose_folds(candidates, 4, seed=1)
    for fold in choose_folds(candidates, 3, seed=0, group_pattern=r"^s\d+"):
        groups = [{sample.id.split("_")[0] for sample in part} for part in (fold.labeled, fold.val)]
        assert not groups[0] & groups[1]
    with pytest.raises(UsageError, match="11 folds of 10 labeled groups of images: expected 2 to 10"):
        choose_folds(candidates, 11, seed=0, group_pattern=r"^s\d+")
