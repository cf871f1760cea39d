"""`gmtool data init`: classes from masks, lists, and a command that trains."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli
from PIL import Image

from gmtool.classes import load_classes
from gmtool.data.splits import read_split
from gmtool.errors import DataError, UsageError
from gmtool.labels.dataset.initializing import initialize
from gmtool.labels.dataset.proposal import Proposal, propose_classes
from gmtool.masks.files import read_mask


def masks_of(folder: Path, arrays: Sequence[Any]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.png" for index in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return paths


def propose(folder: Path, arrays: Sequence[Any], names: Sequence[str] | None = None) -> Proposal:
    return propose_classes(masks_of(folder, arrays), names=names, progress=lambda items, _: iter(items))


@pytest.mark.parametrize(
    ("values", "coding", "raw_ids"),
    [
        ([0, 1, 2, 255], "index", (0, 1, 2)),
        ([0, 1, 2, 5, 11, 12, 255], "index", tuple(range(13))),
        ([0, 255], "raw", (0, 255)),
        ([0, 128, 255], "raw", (0, 128)),
        ([1, 2, 3], "raw", (1, 2, 3)),
        ([7, 11, 26, 255], "raw", (7, 11, 26)),
    ],
)
def test_the_guess_reads_every_mask(
    values: list[int], coding: str, raw_ids: tuple[int, ...], tmp_path: Path
) -> None:
    found = propose(tmp_path, [np.resize(values, (4, 4))])
    assert (found.values, found.classes.raw_ids) == (coding, raw_ids)
    (tmp_path / "classes.json").write_text(json.dumps(found.classes.to_dict()))
    classes = load_classes(str(tmp_path / "classes.json"))
    labels = read_mask(tmp_path / "0.png", classes, values=found.values)
    assert frozenset(np.unique(labels).tolist()) - {255} == found.present[0]


def test_colours_become_classes_with_their_colour(tmp_path: Path) -> None:
    colors = np.array([[0, 0, 0], [0, 128, 0], [224, 224, 192], [200, 10, 10]])
    found = propose(tmp_path, [colors[np.resize(range(4), (4, 4))]], names=["background", "plant", "fruit"])
    assert found.values == "color" and found.classes.background == 0
    assert found.classes.palette == ((0, 0, 0), (0, 128, 0), (200, 10, 10))
    labels = read_mask(tmp_path / "0.png", found.classes, values="color")
    assert labels[0].tolist() == [0, 1, 255, 2]


def test_values_are_counted_over_all_masks(tmp_path: Path) -> None:
    found = propose(tmp_path, [[[0, 0], [0, 1]], [[0, 2], [2, 2]]])
    assert [(one.value, one.share, one.masks) for one in found.found] == [
        (0, 0.5, 2),
        (1, 0.125, 1),
        (2, 0.375, 1),
    ]
    assert found.present == (frozenset({0, 1}), frozenset({0, 2}))
    assert found.classes.names == ("background", "class_1", "class_2")


def test_wrong_names_and_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 names, but the masks have 3 classes, 0 to 2; values found: 0, 1, 2"):
        propose(tmp_path, [[[0, 1, 2]]], names=["a", "b"])
    with pytest.raises(DataError, match="hold only 7"):
        propose(tmp_path, [[[7, 7]]])
    photo = np.random.default_rng(0).integers(0, 255, (40, 40, 3))
    with pytest.raises(DataError, match="more than"):
        propose(tmp_path, [photo])


def make_folder(root: Path, *, values: Sequence[int] = (0, 255), masks: int = 6, images: int = 10) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for index in range(images):
        mask = np.full((40, 48), values[0], dtype=np.uint8)
        mask[8:30, 4 + index : 24 + index] = values[1]
        Image.fromarray(np.repeat(mask[..., None] // 2 + 10 * index, 3, axis=2)).save(root / f"images/{index}.jpg")
        if index < masks:
            Image.fromarray(mask).save(root / f"masks/{index}.png")
    return root


def test_the_printed_line_finds_images_and_masks_of_a_folder_with_a_few_masks(tmp_path: Path, cli: Cli) -> None:
    root = make_folder(tmp_path / "my data")
    code, out, err = cli(["data", "init", root, "--names", "ground,thing"])
    assert code == 0, err
    assert "5 labeled, 1 validation and 4 unlabeled images" in out
    line = shlex.split(err.splitlines()[-1])
    assert line[:2] == ["gmtool", "train"]
    # `gmtool train DIR` takes classes.json and labeled.txt of the folder by itself
    own = ["--classes", root / "classes.json", "--labels", root / "labeled.txt"]
    assert line[2] == str(root)
    code, out, err = cli(["data", "check", "folder", "--data", root, *own, *line[3:], "--json"])
    report = json.loads(out)
    assert sorted(report["images"].values()) == [1, 4, 5] and report["images"]["labeled"] == 5
    assert code == report["errors"] == 0, err


def test_nothing_is_overwritten_and_the_choice_is_seeded(tmp_path: Path) -> None:
    how: dict[str, Any] = {"names": None, "val": 0.4, "group": None, "progress": lambda items, _: iter(items)}
    first = make_folder(tmp_path / "a", masks=10, images=10)
    again, other = make_folder(tmp_path / "b", masks=10), make_folder(tmp_path / "c", masks=10)
    for root, seed in ((first, 1), (again, 1), (other, 2)):
        made = initialize(root, seed=seed, **how)
        assert (made.labeled, made.val, made.unlabeled) == (6, 4, 0) and not (root / "unlabeled.txt").exists()
    lists = [{entry.name for entry in read_split(root / "val.txt")} for root in (first, again, other)]
    assert lists[0] == lists[1] != lists[2]
    assert not lists[0] & {entry.name for entry in read_split(first / "labeled.txt")}
    before = (first / "classes.json").read_bytes()
    with pytest.raises(DataError, match=r"classes.json exists already"):
        initialize(first, seed=1, **how)
    assert (first / "classes.json").read_bytes() == before


def test_a_validation_folder_is_kept(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "a")
    for kind in ("images", "masks"):
        for index, part in enumerate(["train"] * 8 + ["val"] * 2):
            for path in (root / kind).glob(f"{[0, 1, 2, 3, 6, 7, 8, 9, 4, 5][index]}.*"):
                (root / kind / part).mkdir(exist_ok=True)
                path.rename(root / kind / part / path.name)
    made = initialize(root, names=None, val=0.2, group=None, seed=0, progress=lambda items, _: iter(items))
    assert (made.labeled, made.val, made.unlabeled) == (4, 2, 4) and "val.txt" not in made.lists
    assert all(entry.name.startswith("train/") for entry in read_split(root / "labeled.txt"))


def test_other_layouts_and_too_few_masks_are_refused_with_the_remedy(tmp_path: Path) -> None:
    how: dict[str, Any] = {"names": None, "val": 0.2, "group": None, "seed": 0}
    with pytest.raises(DataError, match=r"1 of 10 images have a mask.*images/x.jpg belongs to masks/x.png"):
        initialize(make_folder(tmp_path / "a", masks=1), progress=lambda items, _: iter(items), **how)
    (tmp_path / "b" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(DataError, match="layout voc"):
        initialize(tmp_path / "b", progress=lambda items, _: iter(items), **how)
