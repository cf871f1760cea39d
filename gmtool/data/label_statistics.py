"""Counts of what masks hold, and what they say about how the masks were meant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from gmtool.classes import ClassSet, Color
from gmtool.config import MaskValues
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.errors import some_names
from gmtool.images import open_image
from gmtool.masks.coco_annotations import CocoMask
from gmtool.report.metrics import Int64Array

LABELED_PARTS = ("labeled", "validation")
"""Parts of a data set that have masks."""
FREQUENT = 0.1
"""Share of ignored pixels above which they may be those of a class that seems not to occur."""
MUCH = 0.25
"""Share of ignored pixels that is said."""
IN_TRAINING = "--set data.mask_values=raw"
IN_EVALUATION = "--mask-values raw"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (error) or likely to disappoint (warning)."""

    severity: Literal["error", "warning"]
    kind: str
    """What it is, in a word or two: "unusable", "color mask", "duplicate", ..."""
    message: str
    """One line, with the names of at most three files."""
    files: tuple[str, ...] = ()
    """All files that it is about."""


@dataclass(frozen=True)
class MaskLook:
    """What one mask holds."""

    pixels: Int64Array
    """(C,) pixels of each class."""
    ignored: int
    """Pixels that are ignored."""
    is_jpeg: bool = False
    shown: dict[int, Color] = field(default_factory=dict)
    """Colour by label, of the labels that occur in a palette image."""


@dataclass(frozen=True)
class LabelCounts:
    """Pixels and images of each class in several masks."""

    pixels: Int64Array
    """(C,) pixels of each class."""
    images: Int64Array
    """(C,) images in which each class occurs."""
    ignored: int

    @property
    def ignored_share(self) -> float:
        """Return the share of all pixels that is ignored, in [0, 1]."""
        return self.ignored / max(1, self.ignored + int(self.pixels.sum()))


def look_at_mask(
    sample: Sample, classes: ClassSet, *, values: MaskValues, size: tuple[int, int] | None
) -> MaskLook:
    """Read the mask of a sample and count; for the arguments and errors see `read_truth`."""
    mask = read_truth(sample, classes, values=values, size=size)
    counts = np.bincount(mask.ravel(), minlength=256)
    pixels, ignored = counts[: len(classes)], int(counts[classes.ignore_index])
    if not isinstance(sample.mask, Path):
        return MaskLook(pixels, ignored)
    image = open_image(sample.mask)
    shown: dict[int, Color] = {}
    if values == "index" and image.mode == "P":
        flat = image.getpalette("RGB") or []
        for label in np.flatnonzero(counts).tolist():
            if 3 * label + 2 < len(flat):
                shown[label] = (flat[3 * label], flat[3 * label + 1], flat[3 * label + 2])
    return MaskLook(pixels, ignored, image.format == "JPEG", shown)


def count_labels(looks: Sequence[MaskLook], classes: ClassSet) -> LabelCounts:
    """Add up what masks hold."""
    none = np.zeros(len(classes), dtype=np.int64)
    return LabelCounts(
        pixels=sum((look.pixels for look in looks), none),
        images=sum(((look.pixels > 0).astype(np.int64) for look in looks), none),
        ignored=sum(look.ignored for look in looks),
    )


def label_findings(
    parts: dict[str, LabelCounts], classes: ClassSet, *, values: MaskValues, of_coco: bool
) -> list[Finding]:
    """Return what the labels of the labeled and of the validation masks say about how they were meant.

    Args:
        parts: Counts of "labeled" and "validation" masks; a part that is missing could not be read as a whole.
        classes: What the labels may be.
        values: What the pixels of mask files are.
        of_coco: The masks are annotations.
    """
    findings = []
    doubt = partial(doubt_ignored, classes=classes, values=values, of_coco=of_coco)
    one_class = [part for part, counts in parts.items() if np.count_nonzero(counts.pixels) <= 1 and counts.ignored]
    for part in one_class:
        line = f"{part} masks: {doubt(parts[part].pixels, parts[part].ignored)}"
        findings.append(Finding("error", "ignored", line))
    # A class that is rare may be in one part alone: both together tell
    pixels = sum((counts.pixels for counts in parts.values()), np.zeros(len(classes), dtype=np.int64))
    together = doubt(pixels, sum(counts.ignored for counts in parts.values()))
    if together is not None and len(parts) == len(LABELED_PARTS) and not one_class:
        findings.append(Finding("warning", "ignored", f"masks: {together}"))
    for part, counts in parts.items():
        if part in one_class:
            continue
        if counts.ignored_share >= MUCH:
            line = f"{part} masks: {counts.ignored_share:.0%} of the pixels are ignored, and count for nothing"
            findings.append(Finding("warning", "ignored", line))
        missing = [name for name, images in zip(classes.names, counts.images, strict=True) if not images]
        if missing:
            line = f"{len(missing)} of {len(classes)} classes occur in no {part} image: {some_names(missing)}"
            findings.append(Finding("warning", "missing class", line))
    return findings


def doubt_ignored(
    pixels: Int64Array,
    ignored: int,
    *,
    classes: ClassSet,
    values: MaskValues,
    of_coco: bool = False,
    option: str = IN_TRAINING,
) -> str | None:
    """Return why ignored pixels may be those of a class, and what to do then; None where nothing says so.

    They may be where nothing but one class occurs, or where a class does not occur and many pixels are ignored.

    Args:
        pixels: Pixels of each class, (C,).
        ignored: Ignored pixels.
        classes: What the labels may be.
        values: What the pixels of mask files are.
        of_coco: The masks are annotations.
        option: What the command at hand calls masks of raw ids.
    """
    missing = np.flatnonzero(pixels == 0).tolist()
    only_one = len(classes) - len(missing) <= 1
    share = ignored / max(1, ignored + int(pixels.sum()))
    # Raw ids and colours of no class are ignored on purpose: there a class of few images proves nothing
    if not ignored or not missing or not (only_one or (values == "index" and not of_coco and share >= FREQUENT)):
        return None
    names = some_names([classes.names[index] for index in missing])
    found = [classes.names[index] for index in np.flatnonzero(pixels).tolist()]
    has = f"no class but {found[0]}" if found else "no pixel of any class"
    what = f"{has} occurs" if only_one else f"{names} does not occur"
    line = f"{what}, while {share:.1%} of the pixels are ignored"
    if of_coco:
        return f'{line}: what no annotation covers is, unless a class of classes.json is called "background"'
    if values == "raw":
        ids = some_names([str(raw_id) for raw_id in classes.raw_ids], limit=8)
        return f"{line}: are the masks' values the raw_ids of classes.json ({ids})?"
    if values == "color":
        return f"{line}: are their colours those of classes.json?"
    return f"{line} (label {classes.ignore_index}); {_remedy(missing, classes, option)}"


def _remedy(missing: Sequence[int], classes: ClassSet, option: str) -> str:
    own = list(range(len(classes)))
    if list(classes.raw_ids) != own:
        return f"if the masks hold the raw_ids of classes.json: {option}"
    own[missing[-1]] = classes.ignore_index
    unused = 254 if classes.ignore_index != 254 else 255
    return (
        f"if {classes.ignore_index} stands for {classes.names[missing[-1]]}: "
        f'"raw_ids": {own}, "ignore_index": {unused} in classes.json, and {option}'
    )


def file_findings(looks: Sequence[tuple[Sample, MaskLook]]) -> list[Finding]:
    """Return what the files of masks say: stored as JPEG, palettes in different orders."""
    findings = []
    jpegs = tuple(str(sample.mask) for sample, look in looks if look.is_jpeg)
    if jpegs:
        line = f"{len(jpegs)} masks are stored as JPEG, which changes labels at every edge: {some_names(jpegs)}"
        findings.append(Finding("warning", "jpeg mask", line, jpegs))
    shown_as: dict[int, dict[Color, Sample]] = defaultdict(dict)
    for sample, look in looks:
        for label, color in look.shown.items():
            shown_as[label].setdefault(color, sample)
    for label, colors in sorted(shown_as.items()):
        if len(colors) > 1:
            (first, one), (second, other) = list(colors.items())[:2]
            line = (
                f"label {label} is shown as {list(first)} in {one.mask} and as {list(second)} in {other.mask}: an "
                "editor that sorts palettes changes labels; if the colours are right: --set data.mask_values=color"
            )
            findings.append(Finding("warning", "palette", line, (str(one.mask), str(other.mask))))
            break
    return findings


def is_of_coco(samples: Sequence[Sample]) -> bool:
    """Return whether the masks of samples are annotations."""
    return any(isinstance(sample.mask, CocoMask) for sample in samples)
