"""Classes proposed from the masks of a folder: values or colours found, their shares, a guess at their coding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from gmtool.classes import ClassSet, Color, distinct_palette
from gmtool.config import MaskValues
from gmtool.errors import DataError, UsageError
from gmtool.labels.mask_files import pack_pixels, palette_of, read_pixels, recognize_coding
from gmtool.masks.files import VOID_COLOR

BACKGROUND = "background"
IGNORED = 255
LARGEST_BESIDE_IGNORED = 200
"""Value 255 stands for ignored pixels if there are two others or more, all below this."""
MAX_CLASSES = 254
MAX_INDEX_PER_VALUE = 4
"""Values are class indices if the largest is at most so many times their number: few masks lack some classes."""

Progress: TypeAlias = Callable[[Iterable[Any], int], Iterator[Any]]


@dataclass(frozen=True)
class FoundValue:
    """Value or colour of masks."""

    value: int
    """Value, or packed colour (see `pack_color`)."""
    color: Color | None
    """The colour, or that of the value in the palette of the masks; None without a palette."""
    share: float
    """Share of all pixels, in [0, 1]."""
    masks: int
    """Number of masks with it."""


@dataclass(frozen=True)
class Proposal:
    """Classes of a folder of masks."""

    classes: ClassSet
    values: MaskValues
    """Encoding of the masks."""
    reason: str
    """Why this encoding was taken."""
    found: tuple[FoundValue, ...]
    """Values or colours in ascending order."""
    present: tuple[frozenset[int], ...]
    """Class indices of each mask."""


def propose_classes(masks: Sequence[Path], *, names: Sequence[str] | None, progress: Progress) -> Proposal:
    """Read all masks and propose their classes.

    Args:
        masks: Mask files, at least one.
        names: Names of the classes in ascending order of their values, or of their colours by red, green, blue;
            None for `background` (value 0, or black) and `class_1`, `class_2`, ...
        progress: Shows the masks that are read.

    Raises:
        DataError: A mask cannot be read or is a photo, or there are fewer than two classes.
        UsageError: Another number of names than of classes.
    """
    is_color = recognize_coding(masks).is_color
    found, in_masks = _count(masks, is_color=is_color, progress=progress)
    values: MaskValues
    if is_color:
        found = sorted(found, key=lambda one: one.color or (0, 0, 0))
        ignored = {one.value for one in found if one.color == VOID_COLOR}
        kept = [one for one in found if one.value not in ignored]
        values, reason, labels = "color", "colours that differ", [one.value for one in kept]
    else:
        values, reason, labels = _coding_of([one.value for one in found])
        kept = [one for one in found if one.value in labels]
    classes = _make_classes(labels, kept, names, values=values)
    index_of = {label: index for index, label in enumerate(labels)}
    present = tuple(frozenset(index_of[value] for value in one if value in index_of) for one in in_masks)
    return Proposal(classes, values, reason, tuple(found), present)


def _count(
    masks: Sequence[Path], *, is_color: bool, progress: Progress
) -> tuple[list[FoundValue], list[frozenset[int]]]:
    """Return all values in ascending order, and the values of each mask."""
    pixels: dict[int, int] = {}
    palette: dict[int, Color] = {}
    in_masks = []
    for path in progress(masks, len(masks)):
        read = read_pixels(path, as_colors=is_color)
        if read.ndim == 3 and not is_color:
            raise DataError(f"{path}: a mask of colours, but others hold values: keep masks of one kind")
        values, counts = np.unique(pack_pixels(read) if is_color else read, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            pixels[value] = pixels.get(value, 0) + count
        if len(pixels) > MAX_CLASSES + 1:
            kind = "colours" if is_color else "values"
            raise DataError(f"{path}: more than {MAX_CLASSES} {kind} up to here: is it a mask, or a photo?")
        in_masks.append(frozenset(values.tolist()))
        if not is_color:
            palette |= {value: color for value, color in palette_of(path).items() if value in in_masks[-1]}
    total = sum(pixels.values())
    found = [
        FoundValue(
            value,
            (value & 255, value >> 8 & 255, value >> 16) if is_color else palette.get(value),
            pixels[value] / total,
            sum(value in one for one in in_masks),
        )
        for value in sorted(pixels)
    ]
    return found, in_masks


def _coding_of(values: Sequence[int]) -> tuple[MaskValues, str, list[int]]:
    """Return the encoding of masks of values, the reason, and the values of the classes."""
    others = [value for value in values if value != IGNORED]
    ignores = IGNORED in values and len(others) >= 2 and max(others) < LARGEST_BESIDE_IGNORED
    labels = others if ignores else list(values)
    void = ", 255 is ignored" if ignores else ""
    # Values that no mask has yet are classes too: further masks may have them, and raw ids would ignore them
    if labels[0] == 0 and labels[-1] <= MAX_INDEX_PER_VALUE * len(labels) and labels[-1] < MAX_CLASSES:
        lacking = labels[-1] + 1 - len(labels)
        unseen = f", {lacking} of them in no mask" if lacking else ""
        return "index", f"values 0 to {labels[-1]} are class indices{unseen}{void}", list(range(labels[-1] + 1))
    why = "begin above 0" if labels[0] else "are far apart"
    return "raw", f"the values {why}: each is the id of a class{void}", labels


def _make_classes(
    labels: Sequence[int], kept: Sequence[FoundValue], names: Sequence[str] | None, *, values: MaskValues
) -> ClassSet:
    shown = ", ".join(str(list(one.color or ())) if values == "color" else str(one.value) for one in kept[:12])
    if len(labels) < 2:
        raise DataError(f"the masks hold only {shown or 'ignored pixels'}; expected two classes or more")
    if names is not None and len(names) != len(labels):
        raise UsageError(
            f"--names has {len(names)} names, but the masks have {len(labels)} classes"
            f"{f', 0 to {labels[-1]}' if values == 'index' else ''}; "
            f"{'colours' if values == 'color' else 'values'} found: {shown}{' ...' if len(kept) > 12 else ''}"
        )
    numbers = range(len(labels)) if values == "color" else labels
    proposed = [
        BACKGROUND if label == 0 else f"class_{number}" for number, label in zip(numbers, labels, strict=True)
    ]
    called = list(names or proposed)
    background = called.index(BACKGROUND) if BACKGROUND in called else None
    colors = {one.value: one.color for one in kept}
    own = [colors.get(label) for label in labels]
    known = [color for color in own if color is not None]
    # Grey palettes, and palettes with a colour for two classes, show nothing
    is_usable = len(set(known)) == len(labels) and (
        values == "color" or any(len(set(color)) > 1 for color in known)
    )
    return ClassSet(
        names=tuple(called),
        palette=tuple(known) if is_usable else distinct_palette(len(labels), background),
        raw_ids=tuple(labels) if values == "raw" else tuple(range(len(labels))),
        background=background,
        ignore_colors=(VOID_COLOR,) if values == "color" else (),
    )
