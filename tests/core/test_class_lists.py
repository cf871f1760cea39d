"""Class lists of other tools: names, values, colours, ignored names; each as `--classes FILE` takes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from gmtool.class_lists import read_class_list
from gmtool.classes import load_classes
from gmtool.errors import DataError, MissingExtraError

NAMES = ("background", "disc", "box")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps(list(NAMES))),
        ("id2label.json", json.dumps({"0": "background", "1": "disc", "2": "box"})),
        ("config.json", json.dumps({"id2label": {"0": "background", "1": "disc", "2": "box"}, "num_labels": 3})),
        ("dataset.json", json.dumps({"labels": {"background": 0, "disc": 1, "box": 2}, "numTraining": 9})),
        ("old-dataset.json", json.dumps({"labels": {"0": "background", "1": "disc", "2": "box"}})),
        ("dict.json", json.dumps({"names": {"0": "background", "1": "disc", "2": "box"}})),
        ("cvat.json", json.dumps([{"name": name, "color": "#00ff00", "attributes": []} for name in NAMES])),
        ("names.txt", "background\ndisc\r\nbox\n"),
        ("labels.txt", "__ignore__\nbackground\ndisc\nbox\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\ndisc:1,2,3::\nbackground:0,0,0::\nbox:4,5,6::\n"),
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, disc\n2, box\n"),
        ("data.yaml", "path: .\ntrain: images/train\nnames:\n  0: background\n  1: disc\n  2: box\n"),
        ("list.yaml", "nc: 3\nnames: ['background', 'disc', 'box']\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_lists_of_other_tools_are_classes(name: str, content: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode(encoding))
    classes = load_classes(str(tmp_path / name))
    assert (classes.names, classes.background, classes.raw_ids) == (NAMES, 0, (0, 1, 2))
    if name == "labelmap.txt":
        assert classes.palette == ((0, 0, 0), (1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    ("value", "raw_ids", "ignore_index"),
    [
        ({"labels": {"background": 0, "disc": 4, "ignore": 9}}, (0, 4), 9),
        ({"id2label": {"7": "background", "11": "disc"}}, (7, 11), 255),
    ],
)
def test_values_with_gaps_are_raw_ids(
    value: Any, raw_ids: tuple[int, ...], ignore_index: int, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text(json.dumps(value))
    classes = load_classes(str(tmp_path / "x.json"))
    assert (classes.names, classes.raw_ids, classes.ignore_index) == (
        ("background", "disc"),
        raw_ids,
        ignore_index,
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", "{}", "lists no classes"),
        ("a.json", '{"0": "a", "1": "a"}', "occurs twice"),
        ("a.json", '{"0": ["a"]}', "expected a name for each number"),
        ("a.txt", "", "lists no classes"),
        ("labelmap.txt", "a:1,2:::\n", "expected name:red,green,blue:parts:actions"),
        ("a.yaml", "names: [a, b", "not YAML"),
        ("a.yaml", "x: &x [a]\nnames: *x\n", "has aliases"),
        ("a.csv", "value,name\n0\n", "expected a name for each number"),
        ("a.txt", b"\xff\xff\xfa", "cannot be read as a list of classes"),
    ],
)
def test_a_wrong_list_is_one_line_that_names_it(
    name: str, content: str | bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=name) as error:
        load_classes(str(path))
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_long_text_is_refused_and_yaml_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("name\n" * 300_000)
    with pytest.raises(DataError, match="at most 1048576"):
        read_class_list(tmp_path / "a.txt")
    (tmp_path / "a.yaml").write_text("names: [a, b]\n")
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"reading YAML needs yaml, .*gmtool\[labels\]"):
        read_class_list(tmp_path / "a.yaml")
