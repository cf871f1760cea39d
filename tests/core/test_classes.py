import re
from pathlib import Path

import numpy as np
import pytest

from gmtool.classes import ClassSet, distinct_palette, load_classes, voc_palette
from gmtool.errors import DataError


def test_voc_palette_is_the_published_one() -> None:
    palette = voc_palette(256)
    assert palette[:6] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128))
    assert palette[20] == (0, 64, 128)
    assert palette[255] == (224, 224, 192)


@pytest.mark.parametrize(
    ("name", "count", "background"), [("voc", 21, 0), ("cityscapes", 19, None), ("context", 60, 0)]
)
def test_built_in_class_sets(name: str, count: int, background: int | None) -> None:
    classes = load_classes(name)
    assert len(classes) == count
    assert classes.background == background
    assert len(classes.foreground) == count - (background is not None)


def test_cityscapes_equals_the_official_label_table() -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    official = {label.trainId: label for label in labels if 0 <= label.trainId < 19}
    classes = load_classes("cityscapes")
    for index, (name, color, raw_id) in enumerate(
        zip(classes.names, classes.palette, classes.raw_ids, strict=True)
    ):
        assert (name, color, raw_id) == (official[index].name, official[index].color, official[index].id)


def test_classes_file_round_trips(tmp_path: Path) -> None:
    import json

    path = tmp_path / "classes.json"
    path.write_text(json.dumps(load_classes("cityscapes").to_dict()))
    assert load_classes(str(path)) == load_classes("cityscapes")


def lab(colors: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB in [0, 1], by the formulas of CIE 15."""
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x = np.clip(colors, 0, 1) @ np.array(matrix).T / (0.95047, 1, 1.08883)
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


VISIONS = {
    "usual": np.eye(3),
    # Machado, Oliveira, Fernandes: A physiologically-based model for simulation of color vision deficiency, 2009
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
}


@pytest.mark.parametrize("vision", VISIONS)
def test_default_colors_are_told_apart_by_every_eye_and_none_is_nearly_black(vision: str) -> None:
    for background in (None, 0, 3):
        colors = np.array(distinct_palette(21, background)) / 255
        linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
        seen = lab(linear @ np.array(VISIONS[vision]).T)
        distances = np.linalg.norm(seen[:, None] - seen[None], axis=2) + 100 * np.eye(21)
        assert distances.min() > 14, "VOC's colours have 1.0"
        assert lab(linear)[:, 0].min() > 35
    assert len(set(distinct_palette(255, 7))) == 255


def test_names_alone_are_enough_and_background_is_found(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text('{"names": ["background", "cat", "dog"]}')
    classes = load_classes(str(path))
    assert classes.palette == distinct_palette(3, 0)
    assert classes.foreground == (1, 2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not a JSON file"),
        ('{"a": ["b"]}', "expected a name for each number"),
        ('{"names": ["a"]}', "2 to 255 classes, got 1"),
        ('{"names": ["a", "a"]}', "occurs twice"),
        ('{"names": ["a", "b"], "palette": [[0, 0, 0]]}', "2 names, but 1 entries in palette"),
        ('{"names": ["a", "b"], "palette": [[0, 0, 0], [0, 0, 300]]}', "0 to 255"),
        ('{"names": ["a", "b"], "ignore_index": 1}', "ignore_index 1"),
        ('{"names": ["a", "b"], "background": "c"}', "not one of the class names"),
        ('{"names": ["a", "b"], "pallete": []}', "did you mean palette?"),
        ('{"names": ["a", "b"], "raw_ids": [0, 65536]}', "0 to 65535"),
        ('{"names": ["a", "b"], "ignore_colors": [[0, 0]]}', "ignore_colors[0] has 2 entries; expected 3"),
        ('{"names": ["a", "b"], "ignore_colors": [[0, 0, 256]]}', "0 to 255"),
        ('{"categories": [{"name": "a"}]}', "whole number id and a name"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "its id or name occurs twice"),
    ],
)
def test_a_wrong_classes_file_is_one_line_that_names_it(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(DataError, match="classes.json") as error:
        load_classes(str(path))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_class_set_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="did you mean cityscapes"):
        load_classes("cityscape")


def test_class_sets_compare_by_value() -> None:
    value = load_classes("voc").to_dict()
    assert ClassSet.from_dict(value, where="here") == load_classes("voc")


def test_ignored_colours_round_trip() -> None:
    value = load_classes("voc").to_dict() | {"ignore_colors": [[1, 2, 3]]}
    classes = ClassSet.from_dict(value, where="here")
    assert classes.ignore_colors == ((1, 2, 3),)
    assert classes.to_dict() == value


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["road", "crack", "patch"], 'unlabeled pixels, give "raw_ids": [1, 2, 3], and'),
        (["void", "road", "crack", "patch"], 'leave void out of the names, give "raw_ids": [1, 2, 3], and'),
    ],
)
def test_where_zero_is_unlabeled_the_raw_ids_are_those_of_the_classes(names: list[str], remedy: str) -> None:
    with pytest.raises(DataError, match=re.escape(remedy)):
        ClassSet.from_dict({"names": names, "ignore_index": 0}, where="classes.json")
