"""What the pixels of a folder of mask files are - class indices, raw ids or colours - told from the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gmtool.classes import ClassSet, Color
from gmtool.config import MaskValues
from gmtool.errors import DataError
from gmtool.images import open_image

MAX_FILES = 40
"""Files that are looked at, spread over all of them."""
MEANINGS: dict[MaskValues, str] = {"index": "class indices", "raw": "raw ids", "color": "colours of the classes"}
"""What mask values are called in messages and reports."""


@dataclass(frozen=True)
class Recognized:
    """What masks hold, and how that is known."""

    values: MaskValues
    reason: str


@dataclass(frozen=True)
class _Look:
    """What one file holds."""

    path: Path
    is_color: bool
    labels: frozenset[int]
    """Labels of a file of one channel."""
    colors: frozenset[Color]
    """Colours of a file of several channels, or what a palette shows its labels as."""
    palette: dict[int, Color]
    """Colour by label, of a palette image."""


def recognize_values(paths: Sequence[Path], classes: ClassSet, *, where: Path, option: str) -> Recognized:
    """Tell what mask files hold; refuse to guess where two readings are possible.

    Args:
        paths: The files, of which up to `MAX_FILES` are looked at.
        classes: What the labels and colours may be.
        where: Their folder, for messages.
        option: The option that says what they hold, for messages.

    Raises:
        DataError: Two readings are possible, or none.
    """
    step = -(-len(paths) // MAX_FILES)
    chosen = paths[::step]
    looks = [look for path in chosen if (look := _look(path)) is not None]
    if not looks:
        raise DataError(
            f"{where}: none of {len(chosen)} masks can be read, such as {chosen[0].name}; "
            f"if others can, say what they hold with {option} index|raw|color"
        )
    if any(look.is_color for look in looks):
        return _recognize_colors(looks, classes, where=where, option=option)
    labels = frozenset().union(*(look.labels for look in looks))
    as_index = {*range(len(classes)), classes.ignore_index}
    as_raw = set(classes.raw_ids)
    shown_as = _shown_as(looks, classes)
    if classes.raw_ids == tuple(range(len(classes))):
        if shown_as == "color":
            if labels <= as_index:
                raise _ambiguous(
                    where, "its palettes show other classes than its labels say", "index|color", option
                )
            return Recognized("color", "palettes of the classes' colours, in an order of their own")
        return Recognized("index", "one channel of labels")
    is_raw = bool((labels - as_index) & as_raw) or shown_as == "raw"
    is_index = classes.ignore_index in labels - as_raw or shown_as == "index"
    if is_raw == is_index:
        listed = ", ".join(map(str, sorted(labels)[:12]))
        raise _ambiguous(where, f"labels {listed} may be class indices or raw ids", "index|raw", option)
    if is_raw:
        proof = sorted((labels - as_index) & as_raw)
        return Recognized("raw", f"label {proof[0]} is a raw id and no index" if proof else "palette by raw id")
    proof_of_index = classes.ignore_index in labels - as_raw
    return Recognized("index", f"label {classes.ignore_index} occurs" if proof_of_index else "palette by index")


def _recognize_colors(looks: list[_Look], classes: ClassSet, *, where: Path, option: str) -> Recognized:
    other = [look for look in looks if not look.is_color]
    if other:
        raise DataError(
            f"{where} holds masks of one channel ({other[0].path.name}) and of several: "
            f"give a folder of one kind, and {option} if need be"
        )
    known = {*classes.palette, *classes.ignore_colors}
    strange = [next(iter(look.colors - known)) for look in looks if look.colors - known]
    if len(strange) == len(looks):
        raise DataError(
            f"{where}: pictures with colours such as {list(strange[0])}, which no class has: are they overlays or "
            'photos? Colours of ignored pixels belong into "ignore_colors" of classes.json'
        )
    return Recognized("color", "several channels, with the classes' colours")


def _look(path: Path) -> _Look | None:
    """Return what a file holds; None if it cannot be read, which is said when it is scored."""
    try:
        image = open_image(path)
        if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3) @ np.array([1, 1 << 8, 1 << 16])
            colors = frozenset(_rgb(int(packed)) for packed in np.unique(pixels))
            return _Look(path, True, frozenset(), colors, {})
        labels = [int(label) for label in np.unique(np.asarray(image))]
    except DataError:
        return None
    except Exception:  # Pillow's plugins raise a dozen types for damaged files
        return None
    palette = _palette(image, labels)
    return _Look(path, False, frozenset(labels), frozenset(palette.values()), palette)


def _palette(image: Image.Image, labels: list[int]) -> dict[int, Color]:
    if image.mode != "P":
        return {}
    flat = image.getpalette("RGB") or []
    return {
        label: (flat[3 * label], flat[3 * label + 1], flat[3 * label + 2])
        for label in labels
        if 3 * label + 2 < len(flat)
    }


def _shown_as(looks: list[_Look], classes: ClassSet) -> MaskValues | None:
    """Return which reading the palettes agree with; None where there are none, or they show something else."""
    shown = {(label, color) for look in looks for label, color in look.palette.items()}
    of_classes = {(label, color) for label, color in shown if color in classes.palette}
    if len({color for _, color in of_classes}) < 2:  # one colour, such as black, proves nothing
        return None
    if of_classes <= set(enumerate(classes.palette)):
        return "index"
    if of_classes <= set(zip(classes.raw_ids, classes.palette, strict=True)):
        return "raw"
    known = {*classes.palette, *classes.ignore_colors}
    return "color" if all(color in known for _, color in shown) else None


def _rgb(packed: int) -> Color:
    return packed & 255, packed >> 8 & 255, packed >> 16


def _ambiguous(where: Path, what: str, choices: str, option: str) -> DataError:
    return DataError(f"{where}: {what}: say what they are with {option} {choices}")
