from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmtool.classes import load_classes
from gmtool.errors import DataError
from gmtool.masks import read_mask, write_mask

VOC = load_classes("voc")
CITYSCAPES = load_classes("cityscapes")


def test_a_written_mask_keeps_its_labels_and_shows_the_palette(tmp_path: Path) -> None:
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6) % 21
    mask[0, 0] = 255
    write_mask(tmp_path / "m.png", mask, VOC)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", VOC), mask)
    shown = np.asarray(Image.open(tmp_path / "m.png").convert("RGB"))
    assert tuple(shown[0, 1]) == VOC.palette[1]
    assert tuple(shown[0, 0]) == (224, 224, 192)


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_index_masks_of_every_mode_are_read(tmp_path: Path, mode: str) -> None:
    labels = np.array([[0, 1, 20], [5, 255, 3]], dtype=np.uint8)
    image = Image.fromarray(labels.astype(np.uint16) if mode == "I;16" else labels)
    if mode == "P":
        image.putpalette([value for color in VOC.palette for value in color])
    image.save(tmp_path / "m.png")
    read = read_mask(tmp_path / "m.png", VOC)
    np.testing.assert_array_equal(read, labels)
    assert read.dtype == np.uint8


def test_raw_ids_become_class_indices_and_others_are_ignored(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 33, 0, 4, 255]], dtype=np.uint8)).save(tmp_path / "labelIds.png")
    read = read_mask(tmp_path / "labelIds.png", CITYSCAPES, values="raw")
    assert read.tolist() == [[0, 18, 255, 255, 255]]


def test_a_label_out_of_range_is_named_with_its_likely_cause(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(np.array([[0, 33]], dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match=r"m\.png has label 33, but the data set has 19 .*labelIds"):
        read_mask(path, CITYSCAPES)


def test_a_colour_mask_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match="mode RGB.*colour-coded"):
        read_mask(tmp_path / "m.png", VOC)


def test_a_truncated_mask_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    write_mask(path, np.random.default_rng(0).integers(0, 21, (64, 64), dtype=np.uint8), VOC)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged image"):
        read_mask(path, VOC)
