from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmtool.classes import ClassSet, load_classes
from gmtool.errors import ColorMaskError, DataError, LabelError, RawIdError
from gmtool.masks.files import read_mask, write_mask

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
    with pytest.raises(RawIdError, match=r"m\.png has label 33, but the data set has 19 .*labelIds"):
        read_mask(path, CITYSCAPES)


def test_a_colour_mask_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (0, 128, 0)).save(tmp_path / "m.png")
    with pytest.raises(ColorMaskError, match="mode RGB.*colour-coded.*--set data.mask_values=color"):
        read_mask(tmp_path / "m.png", VOC)
    Image.new("RGB", (4, 4), (3, 0, 0)).save(tmp_path / "m.png")
    with pytest.raises(ColorMaskError, match="red channel alone: save that channel as grey"):
        read_mask(tmp_path / "m.png", VOC)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_three_equal_channels_are_labels(tmp_path: Path, mode: str) -> None:
    labels = np.array([[0, 1, 20], [5, 255, 3]], dtype=np.uint8)
    Image.fromarray(labels).convert(mode).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", VOC), labels)
    classes = ClassSet.from_dict({"names": ["a", "b"], "raw_ids": [5, 20]}, where="here")
    assert read_mask(tmp_path / "m.png", classes, values="raw").tolist() == [[255, 255, 1], [0, 255, 255]]
    with pytest.raises(LabelError, match=r"has colours that no class has: .*the mask is grey: are its val"):
        read_mask(tmp_path / "m.png", VOC, values="color")


def test_all_unknown_colours_are_named_with_shares_and_the_palette_before_ignored_ones(
    tmp_path: Path,
) -> None:
    pixels = np.zeros((1, 8, 3), dtype=np.uint8)
    pixels[0, 1:3], pixels[0, 3:8] = (9, 8, 7), (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    with pytest.raises(LabelError) as raised:
        read_mask(tmp_path / "m.png", VOC, values="color")
    line = str(raised.value)
    assert "colours that no class has: [1, 2, 3] (62.5 %), [9, 8, 7] (25 %): " in line
    assert line.index('"palette"') < line.index('"ignore_colors"')


def test_all_labels_out_of_range_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 30, 40, 200]], dtype=np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(LabelError, match="has labels 30, 40, 200, but the data set has 21 classes"):
        read_mask(tmp_path / "m.png", VOC)


def test_a_truncated_mask_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    write_mask(path, np.random.default_rng(0).integers(0, 21, (64, 64), dtype=np.uint8), VOC)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged image"):
        read_mask(path, VOC)


def test_a_raw_id_among_unknown_labels_tells_what_the_mask_is(tmp_path: Path) -> None:
    Image.fromarray(np.array([[29, 30, 26]], dtype=np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(RawIdError, match="has labels 26, 29, 30,.*--set data.mask_values=raw"):
        read_mask(tmp_path / "m.png", CITYSCAPES)


def test_raw_ids_may_have_16_bits(tmp_path: Path) -> None:
    classes = ClassSet.from_dict({"names": ["a", "b"], "raw_ids": [300, 65535]}, where="here")
    Image.fromarray(np.array([[300, 65535, 299, 0, 255]], dtype=np.uint16)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", classes, values="raw").tolist() == [[0, 1, 255, 255, 255]]
    Image.fromarray(np.array([[300, 65535, -1, 70000]], dtype=np.int32)).save(tmp_path / "m.tif")
    assert read_mask(tmp_path / "m.tif", classes, values="raw").tolist() == [[0, 1, 255, 255]]


def test_grey_coded_masks_are_raw_ids(tmp_path: Path) -> None:
    classes = ClassSet.from_dict({"names": ["a", "b", "c"], "raw_ids": [0, 128, 255], "ignore_index": 9}, where="")
    Image.fromarray(np.array([[255, 128, 0, 7]], dtype=np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", classes, values="raw").tolist() == [[2, 1, 0, 9]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("classes", [VOC, CITYSCAPES, load_classes("context")])
def test_colours_become_class_indices(tmp_path: Path, mode: str, classes: ClassSet) -> None:
    labels = np.random.default_rng(0).integers(0, len(classes), (30, 40), dtype=np.uint8)
    image = Image.fromarray(np.array(classes.palette, dtype=np.uint8)[labels])
    if mode == "P":
        image = image.quantize(256, dither=Image.Dither.NONE)  # a palette in an order of its own
    image.convert(mode).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", classes, values="color"), labels)


def test_colours_of_no_class_are_named_unless_they_are_to_be_ignored(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[0, 0, 0], [1, 2, 3], [224, 224, 192]]], dtype=np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(LabelError, match=r"m\.png has colour \[1, 2, 3\] \(33.3 %\), which no.*ignore_colors"):
        read_mask(tmp_path / "m.png", VOC, values="color")
    value = VOC.to_dict() | {"ignore_colors": [[224, 224, 192], [1, 2, 3]]}
    classes = ClassSet.from_dict(value, where="here")
    assert read_mask(tmp_path / "m.png", classes, values="color").tolist() == [[0, 255, 255]]


def test_two_classes_of_one_colour_cannot_be_told_apart(tmp_path: Path) -> None:
    classes = ClassSet.from_dict({"names": ["a", "b"], "palette": [[1, 2, 3], [1, 2, 3]]}, where="here")
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"colour \[1, 2, 3\] occurs twice"):
        read_mask(tmp_path / "m.png", classes, values="color")
