"""Label maps from COCO annotations, against pycocotools' own reading of them."""

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from gmtool.classes import ClassSet, load_classes
from gmtool.config import DataConfig
from gmtool.data.datasets import load_split, load_training_data
from gmtool.data.ground_truth import read_truth
from gmtool.errors import DataError, MissingExtraError
from gmtool.masks import coco_annotations as coco
from gmtool.masks.coco_annotations import read_coco

HEIGHT, WIDTH = 40, 60
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 300, "name": "lamp"}]


def ring() -> np.ndarray:
    """A square with a hole."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[5:30, 10:40] = 1
    mask[12:20, 18:30] = 0
    return mask


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def crowd() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[:, 45:] = 1
    mask[::3] = 0
    return mask


def annotation(number: int, image: int, category: int, segmentation: Any, *, iscrowd: int = 0) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": iscrowd,
        "area": 1,  # wrong on purpose: nothing relies on it
    }


ANNOTATIONS = [
    annotation(7, 1, 18, [[2, 2, 30.5, 4, 28, 36.2, 3, 30], [40, 5, 55, 5, 48, 20]]),
    annotation(8, 1, 1, [[10, 10, 20, 10, 20, 20, 10, 20]]),
    annotation(9, 1, 300, uncompressed(crowd()), iscrowd=1),
    annotation(10, 2, 1, compressed(ring())),
    annotation(11, 2, 18, uncompressed(ring().T.reshape(HEIGHT, WIDTH))),
    annotation(12, 3, 18, [[1, 1, 9, 1, 9, 9]]),
]


def write_coco(root: Path, part: str, images: list[int], annotations: list[dict[str, Any]]) -> Path:
    """Write images of noise and their annotation file, as COCO 2017 has them."""
    (root / f"{part}2017").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    listed = []
    for number in images:
        name = f"{number:012d}.jpg"
        noise = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{part}2017" / name)
        listed.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
    path = root / "annotations" / f"instances_{part}2017.json"
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": CATEGORIES}))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_coco(tmp_path / "coco", "train", [1, 2, 3, 4], ANNOTATIONS)
    write_coco(tmp_path / "coco", "val", [9], [annotation(1, 9, 1, compressed(ring()))])
    return tmp_path / "coco"


@pytest.fixture
def config(root: Path) -> DataConfig:
    return DataConfig(root, "coco", classes=str(root / "annotations/instances_train2017.json"))


def masks_of(config: DataConfig, classes: ClassSet | None = None) -> list[np.ndarray]:
    samples = load_split(config, "train", None).samples
    return [read_truth(sample, classes or load_classes(config.classes), values="index") for sample in samples]


def test_the_classes_are_background_and_the_categories_by_id(config: DataConfig) -> None:
    classes = load_classes(config.classes)
    assert classes.names == ("background", "person", "dog", "lamp")
    assert classes.raw_ids == (0, 1, 18, 300)
    assert classes.background == 0


@pytest.mark.parametrize(
    ("categories", "names", "raw_ids"),
    [
        ([(0, "objects"), (1, "cat")], ("background", "objects", "cat"), (2, 0, 1)),
        ([(0, "background"), (1, "cat")], ("background", "cat"), (0, 1)),
        ([(3, "background"), (1, "cat")], ("background", "cat"), (3, 1)),
    ],
)
def test_the_background_gets_an_id_of_its_own(
    tmp_path: Path, categories: list[tuple[int, str]], names: tuple[str, ...], raw_ids: tuple[int, ...]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"categories": [{"id": number, "name": name} for number, name in categories]}))
    classes = load_classes(str(path))
    assert (classes.names, classes.raw_ids) == (names, raw_ids)


def test_masks_equal_those_of_pycocotools(config: DataConfig, capsys: pytest.CaptureFixture[str]) -> None:
    reference = COCO(config.classes)
    classes = load_classes(config.classes)
    for number, mask in zip((1, 2, 3, 4), masks_of(config), strict=True):
        objects = [(reference.annToMask(item), item) for item in reference.loadAnns(reference.getAnnIds([number]))]
        objects.sort(key=lambda pair: (-int(pair[0].sum()), pair[1]["id"]))
        expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        for painted, item in objects:
            expected[painted == 1] = classes.raw_ids.index(item["category_id"])
        np.testing.assert_array_equal(mask, expected)
    assert set(np.unique(masks_of(config)[0])) == {0, 1, 2, 3}
    assert not masks_of(config)[3].any()  # an image without annotations is background


def test_smaller_objects_stay_visible_and_of_two_alike_the_later_one(root: Path, config: DataConfig) -> None:
    large, small = [[0, 0, 50, 0, 50, 30, 0, 30]], [[5, 5, 15, 5, 15, 15, 5, 15]]
    for numbers in ((1, 2), (2, 1)):
        objects = [annotation(numbers[0], 1, 1, small), annotation(numbers[1], 1, 18, large)]
        write_coco(root, "train", [1], objects)
        mask = masks_of(config)[0]
        assert mask[10, 10] == 1 and mask[25, 40] == 2
    write_coco(root, "train", [1], [annotation(2, 1, 18, small), annotation(1, 1, 1, small)])
    assert masks_of(config)[0][10, 10] == 2


def test_classes_of_a_file_are_matched_by_name(config: DataConfig, tmp_path: Path) -> None:
    other = ClassSet.from_dict({"names": ["lamp", "dog", "background", "person"]}, where="here")
    ours, theirs = masks_of(config), masks_of(config, other)
    np.testing.assert_array_equal(np.array([2, 3, 1, 0])[ours], theirs)
    without = ClassSet.from_dict({"names": ["background", "person", "dogs"]}, where="here")
    with pytest.raises(DataError, match="annotation 7 .image 1. has category dog, .*did you mean dogs"):
        masks_of(config, without)


def test_without_a_background_class_the_rest_is_ignored(config: DataConfig) -> None:
    classes = ClassSet.from_dict({"names": ["person", "dog", "lamp"]}, where="here")
    assert set(np.unique(masks_of(config, classes)[3])) == {255}


def test_unlabeled_images_never_have_annotations_rasterised(
    root: Path, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rasterised = []

    def spy(mask: coco.CocoMask, classes: ClassSet) -> np.ndarray:
        rasterised.append(mask.image_id)
        return coco.rasterize(mask, classes)

    monkeypatch.setattr("gmtool.data.ground_truth.rasterize", spy)
    (root / "labeled.txt").write_text("train2017/000000000001.jpg\n000000000003\n")
    broken = [item if item["image_id"] != 2 else item | {"segmentation": [[1, 2, 3]]} for item in ANNOTATIONS]
    write_coco(root, "train", [1, 2, 3, 4], broken)
    data = load_training_data(replace(config, labeled=root / "labeled.txt"))
    assert [sample.id for sample in data.unlabeled.samples] == ["train2017/000000000002", "train2017/000000000004"]
    assert all(sample.mask is None for sample in data.unlabeled.samples)
    for sample in data.labeled.samples:
        read_truth(sample, load_classes(config.classes), values="index", size=(HEIGHT, WIDTH))
    assert rasterised == [1, 3]


def test_image_folders_may_lie_below_images(root: Path, config: DataConfig) -> None:
    (root / "images").mkdir()
    for part in ("train", "val"):
        (root / f"{part}2017").rename(root / "images" / f"{part}2017")
    (root / "labeled.txt").write_text("images/train2017/000000000001.jpg\ntrain2017/000000000002\n")
    data = load_training_data(replace(config, labeled=root / "labeled.txt"))
    assert [sample.id for sample in data.labeled.samples] == ["train2017/000000000001", "train2017/000000000002"]


def test_annotations_and_images_may_lie_elsewhere(root: Path, config: DataConfig, tmp_path: Path) -> None:
    (root / "train2017").rename(tmp_path / "pictures")
    (root / "annotations/instances_train2017.json").rename(tmp_path / "own.json")
    moved = replace(config, train_annotations=str(tmp_path / "own.json"), train_images=str(tmp_path / "pictures"))
    samples = load_split(moved, "train", None).samples
    (root / "list.txt").write_text("".join(f"{sample.id}\n" for sample in samples[:2]))
    assert load_split(moved, "train", root / "list.txt").samples == samples[:2]


def test_the_validation_set_needs_no_training_annotations(root: Path, config: DataConfig) -> None:
    (root / "annotations/instances_train2017.json").unlink()
    assert len(load_split(config, "val", None).samples) == 1
    with pytest.raises(DataError, match="has no annotations/instances_train2017.json"):
        load_training_data(config)


Change = Callable[[dict[str, Any]], object]

DAMAGE: dict[str, tuple[Change, str]] = {
    "no images": (lambda v: v.pop("images"), 'expected a list "images"'),
    "an image without size": (lambda v: v["images"][0].pop("height"), "image 1: height is null"),
    "an image twice": (lambda v: v["images"].append(v["images"][0]), "1 images have the id of another"),
    "a path out of the folder": (
        lambda v: v["images"][0].update(file_name="../x.jpg"),
        "image 1: file_name '../x",
    ),
    "an unknown image": (lambda v: v["annotations"][0].update(image_id=77), "annotation 7 has image 77"),
    "an unknown category": (lambda v: v["annotations"][0].update(category_id=5), "annotation 7 has category 5"),
    "a category twice": (
        lambda v: v["categories"].append({"id": 2, "name": "dog"}),
        "category 2 .dog.: its id or",
    ),
    "no segmentation": (lambda v: v["annotations"][0].pop("segmentation"), "annotation 7 .image 1. has no segm"),
    "a box alone": (lambda v: v["annotations"][0].update(segmentation=[]), "annotation 7 .image 1. has no segm"),
    "an odd polygon": (
        lambda v: v["annotations"][0].update(segmentation=[[1] * 7]),
        "annotation 7 .*not a list of x",
    ),
    "infinite": (
        lambda v: v["annotations"][0].update(segmentation=[[1e400] * 6]),
        "annotation 7 .*not a list of x",
    ),
    "another size": (
        lambda v: v["annotations"][2]["segmentation"].update(size=[3, 4]),
        r"annotation 9 .*size \[3, 4",
    ),
    "too many runs": (
        lambda v: v["annotations"][2]["segmentation"]["counts"].append(5),
        "annotation 9 .*2405 pixels",
    ),
    "a negative run": (
        lambda v: v["annotations"][2]["segmentation"]["counts"].append(-5),
        "annotation 9 .*damaged",
    ),
    "a cut string": (lambda v: v["annotations"][3]["segmentation"].update(counts="5o0"), "annotation 10 .*RLE"),
    "a wrong string": (
        lambda v: v["annotations"][3]["segmentation"].update(counts="ÿ"),
        "annotation 10 .*damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_line_that_names_the_place(root: Path, config: DataConfig, damage: str) -> None:
    change, expected = DAMAGE[damage]
    path = root / "annotations/instances_train2017.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=rf"instances_train2017.json.*{expected}") as error:
        masks_of(config)
    assert "\n" not in str(error.value)


def test_an_image_of_another_size_than_listed_is_named(root: Path, config: DataConfig) -> None:
    Image.new("RGB", (WIDTH, HEIGHT - 1)).save(root / "train2017/000000000001.jpg")
    sample = load_split(config, "train", None).samples[0]
    with pytest.raises(DataError, match="json image 1 is 60x40, but its image is 60x39"):
        read_truth(sample, load_classes(config.classes), values="index", size=(HEIGHT - 1, WIDTH))


def test_samples_travel_to_worker_processes(config: DataConfig) -> None:
    samples = load_split(config, "train", None).samples
    assert pickle.loads(pickle.dumps(samples)) == samples


def test_without_pycocotools_one_line_says_what_to_install(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingExtraError, match=r'needs pycocotools, .*pip install "gmtool\[serve\]"'):
        masks_of(config)


def test_any_text_as_compressed_rle_is_refused_or_read(root: Path) -> None:
    file = read_coco(root / "annotations/instances_train2017.json")
    classes = load_classes(str(root / "annotations/instances_train2017.json"))
    good = compressed(ring())["counts"]
    rng = np.random.default_rng(0)
    for _ in range(300):  # pycocotools alone writes past its buffer for some of these
        place = int(rng.integers(len(good)))
        counts = good[:place] + chr(int(rng.integers(40, 120))) + good[place + int(rng.integers(2)) :]
        item = annotation(1, 1, 1, {"size": [HEIGHT, WIDTH], "counts": counts})
        mask = replace(file, annotations={1: [item]}).mask_of(file.images[0])
        try:
            assert coco.rasterize(mask, classes).shape == (HEIGHT, WIDTH)
        except DataError as error:
            assert "annotation 1" in str(error)


def test_a_list_that_names_masks_is_refused(root: Path, config: DataConfig) -> None:
    (root / "labeled.txt").write_text("train2017/000000000001.jpg masks/1.png\n")
    with pytest.raises(DataError, match="names mask masks/1.png, but the ground truth is COCO annotations"):
        load_training_data(replace(config, labeled=root / "labeled.txt"))


def test_a_listed_image_that_is_not_there_is_named(root: Path, config: DataConfig) -> None:
    (root / "train2017/000000000003.jpg").unlink()
    with pytest.raises(DataError, match="000000000003.jpg does not exist"):
        load_split(config, "train", None)


def test_files_that_tools_bend_are_read(tmp_path: Path) -> None:
    """Windows' paths, sizes as floats, annotations without ids, a root category that no annotation has."""
    value = {
        "images": [{"id": 1, "file_name": "photos\\a.png", "height": 10.0, "width": 20.0}],
        "categories": [
            {"id": 0, "name": "dog", "supercategory": "none"},
            {"id": 1, "name": "dog", "supercategory": "dog"},
        ],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 5, 0, 5, 5, 0, 5]]}] * 2,
    }
    (tmp_path / "x.json").write_text(json.dumps(value))
    file = read_coco(tmp_path / "x.json")
    (image,) = file.images
    assert (image.file_name, image.height, image.width) == ("photos/a.png", 10, 20)
    assert file.categories == {1: "dog"}
    assert [item["id"] for item in file.annotations[1]] == [0, 1]
    assert load_classes(str(tmp_path / "x.json")).names == ("background", "dog")


def test_a_category_that_is_its_own_group_stays_without_annotations(tmp_path: Path) -> None:
    value = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert load_classes(str(tmp_path / "x.json")).names == ("background", "person", "dog")
