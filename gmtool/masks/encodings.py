"""Recognise the encoding of mask files: class indices, raw ids or colours."""

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
"""Number of files to read, spread evenly over all."""
MEANINGS: dict[MaskValues, str] = {"index": "class indices", "raw": "raw ids", "color": "colours of the classes"}
"""Names of the encodings in messages and reports."""


@dataclass(frozen=True)
class Recognized:
    """Recognised encoding and the reason."""

    values: MaskValues
    reason: str


@dataclass(frozen=True)
class _MaskFile:
    """Labels and colours of one mask file."""

    path: Path
    is_color: bool
    labels: frozenset[int]
    """Labels of a single-channel file."""
    colors: frozenset[Color]
    """Colours of a file of several channels, or palette colours of its labels."""
    palette: dict[int, Color]
    """Palette colour by label."""


def recognize_values(paths: Sequence[Path], classes: ClassSet, *, where: Path, option: str) -> Recognized:
    """Recognise the encoding of mask files; refuse ambiguous ones.

    Args:
        paths: Mask files, of which up to `MAX_FILES` are read.
        classes: Classes of the labels and colours.
        where: Their folder, for messages.
        option: Option that sets the encoding, for messages.

    Raises:
        DataError: Several encodings are possible, or none.
    """
    # Read some files
    step = -(-len(paths) // MAX_FILES)
    chosen = paths[::step]
    files = [file for path in chosen if (file := _read_file(path)) is not None]
    if not files:
        raise DataError(
            f"{where}: none of {len(chosen)} masks can be read, such as {chosen[0].name}; "
            f"if others can, set their encoding with {option} index|raw|color"
        )
    files = _grey_as_labels(files, classes)
    if any(file.is_color for file in files):
        return _recognize_colors(files, classes, where=where, option=option)
    # Class sets whose raw ids are the indices
    labels = frozenset().union(*(file.labels for file in files))
    as_index = {*range(len(classes)), classes.ignore_index}
    as_raw = set(classes.raw_ids)
    shown_as = _shown_as(files, classes)
    if classes.raw_ids == tuple(range(len(classes))):
        if shown_as == "color":
            if labels <= as_index:
                raise _ambiguous(
                    where, "its palettes show other classes than its labels say", "index|color", option
                )
            return Recognized("color", "palettes of the classes' colours, in an order of their own")
        return Recognized("index", "one channel of labels")
    # Evidence for raw ids and for indices
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


def _grey_as_labels(files: list[_MaskFile], classes: ClassSet) -> list[_MaskFile]:
    """Return files of three equal channels as labels, unless their greys are colours of the classes."""
    colors = {color for file in files if file.is_color for color in file.colors}
    if any(len(set(color)) > 1 for color in colors) or colors <= {*classes.palette, *classes.ignore_colors}:
        return files
    return [
        _MaskFile(file.path, False, frozenset(color[0] for color in file.colors), frozenset(), {})
        if file.is_color
        else file
        for file in files
    ]


def _recognize_colors(files: list[_MaskFile], classes: ClassSet, *, where: Path, option: str) -> Recognized:
    other = [file for file in files if not file.is_color]
    if other:
        raise DataError(
            f"{where} holds masks of one channel ({other[0].path.name}) and of several: "
            f"give a folder of one kind, and {option} if needed"
        )
    known = {*classes.palette, *classes.ignore_colors}
    strange = [next(iter(file.colors - known)) for file in files if file.colors - known]
    if len(strange) == len(files):
        raise DataError(
            f"{where}: pictures with colours such as {list(strange[0])}, which no class has: are they overlays or "
            'photos? Colours of ignored pixels belong into "ignore_colors" of classes.json'
        )
    return Recognized("color", "several channels, with the classes' colours")


def _read_file(path: Path) -> _MaskFile | None:
    """Return labels and colours of a file; None if unreadable, which is an error when it is scored."""
    try:
        image = open_image(path)
        if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3) @ np.array([1, 1 << 8, 1 << 16])
            colors = frozenset(_rgb(int(packed)) for packed in np.unique(pixels))
            return _MaskFile(path, True, frozenset(), colors, {})
        labels = [int(label) for label in np.unique(np.asarray(image))]
    except DataError:
        return None
    except Exception:  # Pillow's plugins raise a dozen types for damaged files
        return None
    palette = _palette(image, labels)
    return _MaskFile(path, False, frozenset(labels), frozenset(palette.values()), palette)


def _palette(image: Image.Image, labels: list[int]) -> dict[int, Color]:
    if image.mode != "P":
        return {}
    flat = image.getpalette("RGB") or []
    return {
        label: (flat[3 * label], flat[3 * label + 1], flat[3 * label + 2])
        for label in labels
        if 3 * label + 2 < len(flat)
    }


def _shown_as(files: list[_MaskFile], classes: ClassSet) -> MaskValues | None:
    """Return the encoding that the palettes agree with; None without palettes, or if they match neither."""
    shown = {(label, color) for file in files for label, color in file.palette.items()}
    of_classes = {(label, color) for label, color in shown if color in classes.palette}
    if len({color for _, color in of_classes}) < 2:  # one colour, such as black, is no evidence
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
    return DataError(f"{where}: {what}: set their encoding with {option} {choices}")
