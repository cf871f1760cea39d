"""One set of label maps in every encoding is read back the same, and matched by the images' names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from gmtool.classes import ClassSet, load_classes, voc_palette
from gmtool.errors import DataError
from gmtool.images import UInt8Array
from gmtool.masks.files import write_mask
from gmtool.masks.sources import open_masks

CLASSES = ClassSet(("sky", "road", "car"), voc_palette(3), (23, 7, 26))
MASK = np.array([[0, 1, 2, 255], [1, 1, 0, 0]], dtype=np.uint8)


def results(mask: UInt8Array, image_id: int | str) -> list[dict[str, Any]]:
    """A COCO results file's entries of one image, as pycocotools encodes them."""
    entries = []
    for index in range(3):
        rle = coco_mask.encode(np.asfortranarray(mask == index))
        rle["counts"] = rle["counts"].decode()
        entries.append({"image_id": image_id, "category_id": CLASSES.raw_ids[index], "segmentation": rle})
    return entries


def write(kind: str, root: Path) -> Path:
    """Write the mask of image a/000007 and return what is to be opened."""
    folder = root / kind
    (folder / "a").mkdir(parents=True)
    path = folder / "a/000007.png"
    if kind == "index":
        write_mask(path, MASK, CLASSES)
    elif kind == "raw":
        table = np.zeros(256, dtype=np.uint8)
        table[:3] = CLASSES.raw_ids
        Image.fromarray(table[MASK]).save(path)
    elif kind == "color":
        classes = ClassSet(CLASSES.names, CLASSES.palette, CLASSES.raw_ids, ignore_colors=((9, 9, 9),))
        table = np.full((256, 3), 9, dtype=np.uint8)
        table[:3] = classes.palette
        Image.fromarray(table[MASK]).save(path)
    elif kind == "npz":
        np.savez(path.with_suffix(".npz"), mask=MASK, confidence=MASK)
    else:
        (folder / "a").rmdir()
        (folder / "results.json").write_text(json.dumps(results(MASK, 7 if kind == "coco number" else "a/000007")))
    return folder


@pytest.mark.parametrize("kind", ["index", "raw", "color", "npz", "coco number", "coco name"])
def test_every_encoding_gives_the_same_labels(tmp_path: Path, kind: str) -> None:
    classes = ClassSet(CLASSES.names, CLASSES.palette, CLASSES.raw_ids, ignore_colors=((9, 9, 9),))
    source = open_masks(write(kind, tmp_path), classes, None, option="--prediction-values")
    np.testing.assert_array_equal(source.read(source.find("a/000007")), MASK)
    words = {"index": "class indices", "raw": "raw ids", "color": "colours", "npz": "npz"}
    assert words.get(kind, "COCO results") in source.description
    with pytest.raises(DataError, match="no mask in"):
        source.find("a/000008")


def test_predictions_of_cityscapes_are_matched_by_city_sequence_and_frame(tmp_path: Path) -> None:
    classes = load_classes("cityscapes")
    truth, flat = tmp_path / "gtFine/town", tmp_path / "flat"
    truth.mkdir(parents=True)
    flat.mkdir()
    name = "town_000000_000019"
    ids = np.array([[7, 26]], dtype=np.uint8)
    for ending, values in (("labelIds", ids), ("instanceIds", ids * 9), ("color", ids)):
        Image.fromarray(values).save(truth / f"{name}_gtFine_{ending}.png")
    Image.fromarray(ids).save(flat / f"{name}_pred.png")
    source = open_masks(tmp_path / "gtFine", classes, None, option="--mask-values")
    assert source.names == (f"town/{name}_gtFine_labelIds",)
    assert "raw ids (named labelIds)" in source.description
    predictions = open_masks(flat, classes, "raw", option="--prediction-values")
    for image in (f"town/{name}_leftImg8bit", f"town/{name}_gtFine_labelIds", name):
        assert predictions.read(predictions.find(image)).tolist() == [[0, 13]]
    Image.fromarray(ids).save(flat / f"{name}_other.png")
    with pytest.raises(DataError, match="has two masks"):
        open_masks(flat, classes, "raw", option="--prediction-values").find(name)


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    overlapping = results(MASK, 7) + results(MASK, 7)[:1]
    other_size = results(MASK, 7)[:1] + results(MASK.T, 7)[1:2]
    unknown = [results(MASK, 7)[0] | {"category_id": 99}]
    for entries, expected in (
        (overlapping, "two of its masks overlap"),
        (other_size, "size \\[4, 2\\], but the image \\[2, 4\\]"),
        (unknown, "category 99, which is not a class"),
    ):
        path.write_text(json.dumps(entries))
        source = open_masks(path, CLASSES, None, option="--prediction-values")
        with pytest.raises(DataError, match=expected):
            source.read("7")
    for content, expected in (
        ("[]", "expected a list"),
        ("{", "not a COCO results"),
        ('{"images": [], "annotations": []}', "COCO annotations, .*--layout coco --set data.val_annotations="),
        ('[{"a": 1}]', "entry 0: image_id"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=expected):
            open_masks(path, CLASSES, None, option="--prediction-values")


def test_an_archive_without_a_mask_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", other=MASK)
    np.savez(tmp_path / "b.npz", mask=MASK.astype(np.float32))
    np.savez(tmp_path / "c.npz", mask=MASK + np.int64(300))
    (tmp_path / "d.npz").write_text("no archive")
    source = open_masks(tmp_path, CLASSES, None, option="--prediction-values")
    for name, expected in (
        ("a", 'no array "mask"'),
        ("b", "mask is float32"),
        ("c", "label 300"),
        ("d", "not an npz"),
    ):
        with pytest.raises(DataError, match=expected):
            source.read(name)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no masks in it"):
        open_masks(tmp_path, CLASSES, None, option="x")
    with pytest.raises(DataError, match="no such folder"):
        open_masks(tmp_path / "nowhere", CLASSES, None, option="x")
    write_mask(tmp_path / "a.png", MASK, CLASSES)
    np.savez(tmp_path / "b.npz", mask=MASK)
    with pytest.raises(DataError, match="PNG and npz"):
        open_masks(tmp_path, CLASSES, None, option="x")
