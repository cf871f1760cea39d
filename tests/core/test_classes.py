from pathlib import Path

import pytest

from gmtool.classes import ClassSet, load_classes, voc_palette
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


def test_names_alone_are_enough_and_background_is_found(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text('{"names": ["background", "cat", "dog"]}')
    classes = load_classes(str(path))
    assert classes.palette == voc_palette(3)
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
