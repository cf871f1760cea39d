"""Classes of a data set: names, colours, ids on disk, ignored label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmtool.class_lists import IGNORE_NAMES, TEXT_SUFFIXES, from_json, read_class_list
from gmtool.errors import DataError, did_you_mean
from gmtool.json_toml import read_json, shown, typed

Color = tuple[int, int, int]

MAX_RAW_ID = 65_535
"""Largest label of a 16-bit mask."""

BUILT_IN = ("voc", "cityscapes", "context")
BUILT_IN_DIR = Path(__file__).parent / "class_sets"
DISTINCT_COLORS = BUILT_IN_DIR / "distinct_colors.json"


@dataclass(frozen=True)
class ClassSet:
    """Classes of a data set, stored in checkpoints and exported models too."""

    names: tuple[str, ...]
    """Class names by class index."""
    palette: tuple[Color, ...]
    """RGB colour of each class, 0-255."""
    raw_ids: tuple[int, ...]
    """Id of each class in masks of raw ids (Cityscapes `labelIds`), 0 to 65 535; default: the class indices."""
    ignore_index: int = 255
    """Label of pixels that count in no loss and no score."""
    background: int | None = None
    """Index of the background class, or None."""
    ignore_colors: tuple[Color, ...] = ()
    """Colours of ignored pixels in colour-coded masks."""

    def __post_init__(self) -> None:
        count = len(self.names)
        if not 2 <= count <= 255:
            raise DataError(f"a class set needs 2 to 255 classes, got {count}")
        for what, values in (("palette", self.palette), ("raw_ids", self.raw_ids)):
            if len(values) != count:
                raise DataError(f"class set: {count} names, but {len(values)} entries in {what}")
        if len(set(self.names)) != count or len(set(self.raw_ids)) != count:
            raise DataError("class set: a name or a raw id occurs twice")
        colors = (*self.palette, *self.ignore_colors)
        if not all(isinstance(v, int) and 0 <= v <= 255 for color in colors for v in color):
            raise DataError("class set: a palette colour is three whole numbers from 0 to 255")
        if not all(0 <= raw_id <= MAX_RAW_ID for raw_id in self.raw_ids):
            raise DataError(f"class set: a raw id is a whole number from 0 to {MAX_RAW_ID}")
        if not count <= self.ignore_index <= 255:
            has_void = self.names[0].lower() in IGNORE_NAMES
            ids = list(range(1, count + (not has_void)))
            leave = f"leave {self.names[0]} out of the names, " if has_void else ""
            raise DataError(
                f"class set: ignore_index {self.ignore_index} must be from {count} to 255; if masks have 0 for "
                f'unlabeled pixels, {leave}give "raw_ids": {ids}, and read masks with --set data.mask_values=raw'
            )
        if self.background is not None and not 0 <= self.background < count:
            raise DataError(f"class set: background {self.background} is not a class index")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def foreground(self) -> tuple[int, ...]:
        """Indices of all classes but the background."""
        return tuple(index for index in range(len(self)) if index != self.background)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of `classes.json`."""
        return {
            "names": list(self.names),
            "palette": [list(color) for color in self.palette],
            "raw_ids": list(self.raw_ids),
            "ignore_index": self.ignore_index,
            "background": None if self.background is None else self.names[self.background],
            "ignore_colors": [list(color) for color in self.ignore_colors],
        }

    @classmethod
    def from_dict(cls, value: Any, *, where: str) -> ClassSet:
        """Build a class set from its JSON form.

        Args:
            value: A mapping with `names`; optional `palette` (default: `distinct_palette`), `raw_ids`,
                `ignore_index`, `background` (a class name; default: the class named "background") and
                `ignore_colors` (default: none).
            where: Name of the file, for messages.

        Raises:
            DataError: The mapping is not a class set.
        """
        if not isinstance(value, dict) or not isinstance(value.get("names"), list):
            raise DataError(f'{where}: expected an object with a list "names" of class names')
        file = typed(_ClassesFile, value, where=where)
        names = file.names
        background = file.background
        if "background" not in value and "background" in names:
            background = "background"
        if background is not None and background not in names:
            raise DataError(f"{where}: background {shown(background)} is not one of the class names")
        try:
            return cls(
                names=names,
                palette=file.palette
                or distinct_palette(len(names), None if background is None else names.index(background)),
                raw_ids=file.raw_ids or tuple(range(len(names))),
                ignore_index=file.ignore_index,
                background=None if background is None else names.index(background),
                ignore_colors=file.ignore_colors,
            )
        except DataError as error:
            raise DataError(f"{where}: {error}") from error


@dataclass(frozen=True)
class _ClassesFile:
    """Keys of a `classes.json`."""

    names: tuple[str, ...]
    palette: tuple[Color, ...] | None = None
    raw_ids: tuple[int, ...] | None = None
    ignore_index: int = 255
    background: str | None = None
    ignore_colors: tuple[Color, ...] = ()


def load_classes(name_or_path: str) -> ClassSet:
    """Return a built-in class set (`voc`, `cityscapes`, `context`) or the one in a file.

    The file is a `classes.json`, COCO annotations, or another tool's list of classes (see
    `gmtool.class_lists.read_class_list`). The classes of annotations are the background and the categories, sorted
    by id; the raw ids are the category ids.

    Raises:
        DataError: The name is not built in and no such file exists, or the file is not a class set.
    """
    built_in = name_or_path in BUILT_IN
    path = BUILT_IN_DIR / f"{name_or_path}.json" if built_in else Path(name_or_path)
    if not path.is_file():
        hint = did_you_mean(name_or_path, BUILT_IN)
        raise DataError(f"classes {name_or_path}: neither a built-in class set nor a file{hint}")
    if not built_in and path.suffix.lower() in TEXT_SUFFIXES:
        return ClassSet.from_dict(read_class_list(path).to_classes(), where=str(path))
    value = read_json(path, what="a JSON file of classes", any_number=True)
    if isinstance(value, dict) and "categories" in value:
        return _classes_of_categories(read_categories(value, where=str(path)), where=str(path))
    if not isinstance(value, dict) or not isinstance(value.get("names"), list):
        own = value if isinstance(value, dict) and "names" in value else {}  # names by number, beside a palette
        value = own | from_json(value, where=str(path)).to_classes()
    return ClassSet.from_dict(value, where=str(path))


def read_categories(value: dict[str, Any], *, where: str) -> dict[int, str]:
    """Return the categories of a COCO annotation file, name by id, in the order of the ids.

    Categories without annotations that only group others are left out.

    Raises:
        DataError: `categories` is missing, a category has no id or name, or an id or name occurs twice.
    """
    listed = value.get("categories")
    if not isinstance(listed, list):
        raise DataError(f'{where}: not a COCO annotation file: expected a list "categories"')
    groups = grouping_categories(value)
    if groups:
        named = [item for item in listed if isinstance(item, dict) and isinstance(item.get("name"), str)]
        listed = [item for item in listed if item not in [named[place] for place in groups]]
    found: dict[int, str] = {}
    names: set[str] = set()
    for item in listed:
        if not (isinstance(item, dict) and type(item.get("id")) is int and isinstance(item.get("name"), str)):
            raise DataError(f"{where} category {shown(item)}: expected a whole number id and a name")
        if item["id"] in found or item["name"] in names:
            raise DataError(f"{where} category {item['id']} ({item['name']}): its id or name occurs twice")
        found[item["id"]] = item["name"]
        names.add(item["name"])
    return dict(sorted(found.items()))


def grouping_categories(value: dict[str, Any]) -> set[int]:
    """Return the places of the named categories that have no annotation and only group others.

    Roboflow's root category has the name of the project, which may be that of its only class.
    """
    annotations = value.get("annotations")
    if not isinstance(annotations, list) or not isinstance(value.get("categories"), list):
        return set()
    listed = [item for item in value["categories"] if isinstance(item, dict) and isinstance(item.get("name"), str)]
    used = {shown(item.get("category_id")) for item in annotations if isinstance(item, dict)}
    groups = set()
    for place, item in enumerate(listed):
        others = [other for other in listed if other is not item]
        is_group = any(item["name"] == other.get("supercategory") for other in others)
        if is_group and shown(item.get("id")) not in used:
            groups.add(place)
    return groups


def _classes_of_categories(categories: dict[int, str], *, where: str) -> ClassSet:
    """Return background and categories; a category named "background" is the background."""
    things = {raw_id: name for raw_id, name in categories.items() if name != "background"}
    own = [raw_id for raw_id in categories if raw_id not in things]
    unused = own[0] if own else next(raw_id for raw_id in range(len(things) + 1) if raw_id not in things)
    names = ["background", *things.values()]
    return ClassSet.from_dict({"names": names, "raw_ids": [unused, *things]}, where=where)


def distinct_palette(count: int, background: int | None = None) -> tuple[Color, ...]:
    """Return `count` colours that people, also with colour vision deficiency, tell apart; none is nearly black.

    The background is grey. The source of the colours is in `class_sets/distinct_colors.json`.
    """
    value = read_json(DISTINCT_COLORS)
    colors = [_from_hex(text) for text in value["colors"]][:count]
    if background is not None:
        colors.insert(background, _from_hex(value["background"]))
    return tuple(colors[:count])


def _from_hex(text: str) -> Color:
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def voc_palette(count: int) -> tuple[Color, ...]:
    """Return the first `count` colours of the PASCAL VOC colour map: index bits spread over R, G, B."""
    colors = []
    for index in range(count):
        red = green = blue = 0
        for place in range(8):
            bits = index >> (3 * place)
            red |= (bits & 1) << (7 - place)
            green |= (bits >> 1 & 1) << (7 - place)
            blue |= (bits >> 2 & 1) << (7 - place)
        colors.append((red, green, blue))
    return tuple(colors)
