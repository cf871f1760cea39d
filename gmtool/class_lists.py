"""Read the class lists of other tools: labelmap.txt, _classes.csv, data.yaml, id2label, dataset.json, text."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmtool.errors import DataError, needs_extra
from gmtool.json_toml import read_json, shown

IGNORE_NAMES = ("__ignore__", "ignore", "ignored", "void")
"""Labels whose pixels are ignored, as labelme, nnU-Net and others name them."""
BACKGROUND_NAMES = ("background", "_background_", "__background__")
"""Labels of the background class."""
TEXT_SUFFIXES = (".txt", ".csv", ".yaml", ".yml", ".names")
MAX_BYTES = 1 << 20

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """Names of classes with what else the file says about them."""

    values: Mapping[str, int]
    """Value of each class in masks, by name, in ascending order."""
    colors: Mapping[str, Color] = field(default_factory=dict)
    """Colour by name, where the file has one."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of their values."""
        return tuple(self.values)

    def to_classes(self) -> dict[str, Any]:
        """Return the JSON form of a class set, without the names that stand for ignored pixels."""
        names = [name for name in self.values if name not in IGNORE_NAMES]
        ignored = [value for name, value in self.values.items() if name in IGNORE_NAMES]
        ids = [self.values[name] for name in names]
        value: dict[str, Any] = {"names": names}
        if ids != list(range(len(names))) and not (ignored == [0] and ids == list(range(1, len(names) + 1))):
            value["raw_ids"] = ids
        if ignored and len(names) <= ignored[0] <= 255:
            value["ignore_index"] = ignored[0]
        if all(name in self.colors for name in names):
            value["palette"] = [list(self.colors[name]) for name in names]
        background = [name for name in names if name in BACKGROUND_NAMES]
        if background:
            value["background"] = background[0]
        return value


def read_class_list(path: Path) -> ClassList:
    """Return the classes of a file that is not gmtool's own.

    Text: a name a line (labelme), `name:r,g,b::` (CVAT's labelmap.txt). CSV: Roboflow's `Pixel Value, Class`.
    YAML: `names` of YOLO's data.yaml. JSON: a list of names or of objects with a name (CVAT), `id2label`
    (Hugging Face), `labels` of nnU-Net's dataset.json, an object from number to name or from name to number.

    Raises:
        DataError: The file cannot be read, or lists no classes.
    """
    if path.suffix.lower() == ".json":
        value = read_json(path, what="a JSON file of classes", any_number=True)
        return from_json(value, where=str(path))
    text = _read_text(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        return from_json(_parse_yaml(text, where=str(path)), where=str(path))
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if path.suffix.lower() == ".csv":
        return _from_csv(lines, where=str(path))
    if lines and all(line.count(":") >= 3 for line in lines):
        return _from_label_map(lines, where=str(path))
    return _checked(list(enumerate(lines)), {}, where=str(path))


def from_json(value: Any, *, where: str) -> ClassList:
    """Return the classes of a JSON or YAML value; see `read_class_list`.

    Raises:
        DataError: The value lists no classes.
    """
    if isinstance(value, dict):
        for key in ("id2label", "names", "labels", "label2id", "classes"):
            if isinstance(value.get(key), (dict, list)):
                value = value[key]
                break
    if isinstance(value, list):
        colors = {item["name"]: _color(item.get("color")) for item in value if _is_named(item)}
        named = [item["name"] if _is_named(item) else item for item in value]
        known = {name: color for name, color in colors.items() if color is not None}
        return _checked(list(enumerate(named)), known, where=where)
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        for key, item in value.items():
            pairs.append((item, key) if type(item) is int and not _is_whole(key) else (key, item))
    return _checked(pairs, {}, where=where)


def _is_named(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name"), str)


def _is_whole(key: Any) -> bool:
    return type(key) is int or (isinstance(key, str) and key.isascii() and key.isdigit())


def _checked(pairs: list[tuple[Any, Any]], colors: Mapping[str, Color], *, where: str) -> ClassList:
    """Return a class list from pairs of value and name."""
    values: dict[str, int] = {}
    for value, name in pairs:
        if not _is_whole(value) or len(str(value)) > 9 or not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{where}: expected a name for each number, got {shown(value)}: {shown(name)}; known files: "
                "classes.json, labelmap.txt, _classes.csv, data.yaml, id2label, dataset.json, a name a line"
            )
        if name.strip() in values or int(value) in values.values():
            raise DataError(f"{where}: the class {shown(name)} or its number {shown(value)} occurs twice")
        values[name.strip()] = int(value)
    if not values:
        raise DataError(f"{where} lists no classes: expected a name a line, or a JSON object with names")
    return ClassList(dict(sorted(values.items(), key=lambda item: item[1])), colors)


def _from_label_map(lines: list[str], *, where: str) -> ClassList:
    """Return the classes of CVAT's labelmap.txt, the background first: it writes labels in any order."""
    colors: dict[str, Color] = {}
    names = []
    for line in lines:
        name, _, rest = line.partition(":")
        color = _color(rest.split(":")[0].split(","))
        if color is None:
            raise DataError(f"{where}: {shown(line)}: expected name:red,green,blue:parts:actions")
        colors[name.strip()] = color
        names.append(name.strip())
    names.sort(key=lambda name: name not in BACKGROUND_NAMES)
    return _checked(list(enumerate(names)), colors, where=where)


def _from_csv(lines: list[str], *, where: str) -> ClassList:
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, skipinitialspace=True)]
    if rows and not rows[0][0].isdigit():
        rows = rows[1:]  # a heading
    return _checked([(row[0], row[1] if len(row) > 1 else None) for row in rows], {}, where=where)


def _color(value: Any) -> Color | None:
    """Return a colour from three numbers or #rrggbb; None if it is neither."""
    if isinstance(value, str) and len(value) == 7 and value.startswith("#"):
        value = [value[1:3], value[3:5], value[5:7]]
        base = 16
    else:
        base = 10
    try:
        red, green, blue = (int(str(each).strip(), base) for each in value)
    except (TypeError, ValueError):
        return None
    return (red, green, blue) if 0 <= min(red, green, blue) <= max(red, green, blue) <= 255 else None


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes; a list of classes has at most {MAX_BYTES}")
        content = path.read_bytes()
        encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        return content.decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of classes: {error}") from error


def _parse_yaml(text: str, *, where: str) -> Any:
    """Return the value of a YAML text, without aliases, which grow without bound."""
    with needs_extra("labels", "reading YAML"):
        import yaml
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise DataError(f"{where}: has aliases (*name), which are not read")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = str(error).splitlines()[0]
        raise DataError(f"{where}: not YAML: {line}") from error
