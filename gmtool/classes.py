"""The classes of a data set: names, colours, ids on disk, and which label is ignored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmtool.errors import DataError, did_you_mean

Color = tuple[int, int, int]

BUILT_IN = ("voc", "cityscapes", "context")
BUILT_IN_DIR = Path(__file__).parent / "class_sets"


@dataclass(frozen=True)
class ClassSet:
    """Everything that gives a label its meaning. It travels from data set to checkpoint to exported model."""

    names: tuple[str, ...]
    """Class names; the position is the class index that the network predicts."""
    palette: tuple[Color, ...]
    """One RGB colour a class, 0-255."""
    raw_ids: tuple[int, ...]
    """The id of each class in mask files that hold raw ids (Cityscapes `labelIds`); else 0, 1, 2, ..."""
    ignore_index: int = 255
    """Label of the pixels that neither the loss nor the score looks at."""
    background: int | None = None
    """Index of the class that stands for "none of the others", or None."""

    def __post_init__(self) -> None:
        count = len(self.names)
        if not 2 <= count <= 255:
            raise DataError(f"a class set needs 2 to 255 classes, got {count}")
        for what, values in (("palette", self.palette), ("raw_ids", self.raw_ids)):
            if len(values) != count:
                raise DataError(f"class set: {count} names, but {len(values)} entries in {what}")
        if len(set(self.names)) != count or len(set(self.raw_ids)) != count:
            raise DataError("class set: a name or a raw id occurs twice")
        if not all(isinstance(v, int) and 0 <= v <= 255 for color in self.palette for v in color):
            raise DataError("class set: a palette colour is three whole numbers from 0 to 255")
        if not all(0 <= raw_id <= 255 for raw_id in self.raw_ids):
            raise DataError("class set: a raw id is a whole number from 0 to 255")
        if not count <= self.ignore_index <= 255:
            raise DataError(f"class set: ignore_index {self.ignore_index} must lie from {count} to 255")
        if self.background is not None and not 0 <= self.background < count:
            raise DataError(f"class set: background {self.background} is not a class index")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def foreground(self) -> tuple[int, ...]:
        """Indices of all classes but the background."""
        return tuple(index for index in range(len(self)) if index != self.background)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as `classes.json` has it."""
        return {
            "names": list(self.names),
            "palette": [list(color) for color in self.palette],
            "raw_ids": list(self.raw_ids),
            "ignore_index": self.ignore_index,
            "background": None if self.background is None else self.names[self.background],
        }

    @classmethod
    def from_dict(cls, value: Any, *, where: str) -> ClassSet:
        """Build a class set from its JSON form.

        Args:
            value: A mapping with `names`; optional `palette` (default: VOC's colours), `raw_ids`,
                `ignore_index` and `background` (a class name; default: the class named "background").
            where: The file it came from, for messages.

        Raises:
            DataError: The mapping is not a class set.
        """
        if not isinstance(value, dict) or not isinstance(value.get("names"), list):
            raise DataError(f'{where}: expected an object with a list "names" of class names')
        unknown = set(value) - {"names", "palette", "raw_ids", "ignore_index", "background"}
        if unknown:
            word = sorted(unknown)[0]
            known = ("names", "palette", "raw_ids", "ignore_index", "background")
            raise DataError(f"{where}: unknown key {word}{did_you_mean(word, known)}")
        names = tuple(str(name) for name in value["names"])
        background = value.get("background", "background" if "background" in names else None)
        if background is not None and background not in names:
            raise DataError(f"{where}: background {background!r} is not one of the class names")
        try:
            return cls(
                names=names,
                palette=tuple(_as_color(color) for color in value.get("palette") or voc_palette(len(names))),
                raw_ids=tuple(int(raw_id) for raw_id in value.get("raw_ids") or range(len(names))),
                ignore_index=int(value.get("ignore_index", 255)),
                background=None if background is None else names.index(background),
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {error}") from error
        except DataError as error:
            raise DataError(f"{where}: {error}") from error


def load_classes(name_or_path: str) -> ClassSet:
    """Return a built-in class set (`voc`, `cityscapes`, `context`) or the one in a `classes.json` file.

    Raises:
        DataError: The name is not built in and no such file exists, or the file is not a class set.
    """
    built_in = name_or_path in BUILT_IN
    path = BUILT_IN_DIR / f"{name_or_path}.json" if built_in else Path(name_or_path)
    if not path.is_file():
        hint = did_you_mean(name_or_path, BUILT_IN)
        raise DataError(f"classes {name_or_path}: neither a built-in class set nor a JSON file{hint}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a JSON file of classes: {error}") from error
    return ClassSet.from_dict(value, where=str(path))


def voc_palette(count: int) -> tuple[Color, ...]:
    """Return the first `count` colours of PASCAL VOC's map: the bits of the index, spread over R, G and B."""
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


def _as_color(value: Any) -> Color:
    red, green, blue = value
    return red, green, blue
