"""Label statistics of masks, and findings about wrong encodings."""

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
"""Parts with masks."""
FREQUENT = 0.1
"""Share of ignored pixels above which they may belong to a class without pixels."""
MUCH = 0.25
"""Share of ignored pixels above which it is a warning."""
IN_TRAINING = "--set data.mask_values=raw"
IN_EVALUATION = "--mask-values raw"


@dataclass(frozen=True)
class DataFinding:
    """Error or warning of a data check."""

    severity: Literal["error", "warning"]
    kind: str
    """Kind in a word or two: "unusable", "color mask", "duplicate", ..."""
    message: str
    """Message of one line with at most three file names."""
    files: tuple[str, ...] = ()
    """All files of the finding."""


@dataclass(frozen=True)
class MaskContent:
    """Label counts and palette of one mask."""

    pixels: Int64Array
    """(C,) pixels of each class."""
    ignored: int
    """Number of ignored pixels."""
    is_jpeg: bool = False
    shown: dict[int, Color] = field(default_factory=dict)
    """Palette colour by label, for the labels of a palette image."""


@dataclass(frozen=True)
class LabelCounts:
    """Pixels and images of each class over several masks."""

    pixels: Int64Array
    """(C,) pixels of each class."""
    images: Int64Array
    """(C,) images that contain each class."""
    ignored: int

    @property
    def ignored_share(self) -> float:
        """Return the share of all pixels that is ignored, in [0, 1]."""
        return self.ignored / max(1, self.ignored + int(self.pixels.sum()))


def read_content(
    sample: Sample, classes: ClassSet, *, values: MaskValues, size: tuple[int, int] | None
) -> MaskContent:
    """Read the mask of a sample and count its labels; arguments and errors as for `read_truth`."""
    mask = read_truth(sample, classes, values=values, size=size)
    counts = np.bincount(mask.ravel(), minlength=256)
    pixels, ignored = counts[: len(classes)], int(counts[classes.ignore_index])
    if not isinstance(sample.mask, Path):
        return MaskContent(pixels, ignored)
    image = open_image(sample.mask)
    shown: dict[int, Color] = {}
    if values == "index" and image.mode == "P":
        flat = image.getpalette("RGB") or []
        for label in np.flatnonzero(counts).tolist():
            if 3 * label + 2 < len(flat):
                shown[label] = (flat[3 * label], flat[3 * label + 1], flat[3 * label + 2])
    return MaskContent(pixels, ignored, image.format == "JPEG", shown)


def count_labels(contents: Sequence[MaskContent], classes: ClassSet) -> LabelCounts:
    """Sum the label counts of masks."""
    none = np.zeros(len(classes), dtype=np.int64)
    return LabelCounts(
        pixels=sum((look.pixels for look in contents), none),
        images=sum(((look.pixels > 0).astype(np.int64) for look in contents), none),
        ignored=sum(look.ignored for look in contents),
    )


def label_findings(
    parts: dict[str, LabelCounts], classes: ClassSet, *, values: MaskValues, of_coco: bool
) -> list[DataFinding]:
    """Return findings about the labels of labeled and validation masks.

    Args:
        parts: Counts of "labeled" and "validation" masks; a part with unreadable masks is missing.
        classes: Classes of the labels.
        values: Encoding of the mask files.
        of_coco: Whether the masks are COCO annotations.
    """
    findings = []
    doubt = partial(doubt_ignored, classes=classes, values=values, of_coco=of_coco)
    one_class = [part for part, counts in parts.items() if np.count_nonzero(counts.pixels) <= 1 and counts.ignored]
    for part in one_class:
        line = f"{part} masks: {doubt(parts[part].pixels, parts[part].ignored)}"
        findings.append(DataFinding("error", "ignored", line))
    # A rare class may be in one part only: check both parts together
    pixels = sum((counts.pixels for counts in parts.values()), np.zeros(len(classes), dtype=np.int64))
    together = doubt(pixels, sum(counts.ignored for counts in parts.values()))
    if together is not None and len(parts) == len(LABELED_PARTS) and not one_class:
        findings.append(DataFinding("warning", "ignored", f"masks: {together}"))
    for part, counts in parts.items():
        if part in one_class:
            continue
        if counts.ignored_share >= MUCH:
            line = f"{part} masks: {counts.ignored_share:.0%} of the pixels are ignored, and count for nothing"
            findings.append(DataFinding("warning", "ignored", line))
        missing = [name for name, images in zip(classes.names, counts.images, strict=True) if not images]
        if missing:
            line = f"{len(missing)} of {len(classes)} classes occur in no {part} image: {some_names(missing)}"
            findings.append(DataFinding("warning", "missing class", line))
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
    """Return why ignored pixels may belong to a class, with a remedy; None if there is no sign of it.

    Signs: only one class occurs, or a class does not occur and many pixels are ignored.

    Args:
        pixels: Pixels of each class, (C,).
        ignored: Number of ignored pixels.
        classes: Classes of the labels.
        values: Encoding of the mask files.
        of_coco: Whether the masks are COCO annotations.
        option: Option of the command that selects raw ids, for the message.
    """
    missing = np.flatnonzero(pixels == 0).tolist()
    only_one = len(classes) - len(missing) <= 1
    share = ignored / max(1, ignored + int(pixels.sum()))
    # With raw ids and colours, pixels without class are ignored on purpose
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


def file_findings(contents: Sequence[tuple[Sample, MaskContent]]) -> list[DataFinding]:
    """Return findings about mask files: JPEG, palettes in different orders."""
    findings = []
    jpegs = tuple(str(sample.mask) for sample, look in contents if look.is_jpeg)
    if jpegs:
        line = f"{len(jpegs)} masks are stored as JPEG, which changes labels at every edge: {some_names(jpegs)}"
        findings.append(DataFinding("warning", "jpeg mask", line, jpegs))
    shown_as: dict[int, dict[Color, Sample]] = defaultdict(dict)
    for sample, look in contents:
        for label, color in look.shown.items():
            shown_as[label].setdefault(color, sample)
    for label, colors in sorted(shown_as.items()):
        if len(colors) > 1:
            (first, one), (second, other) = list(colors.items())[:2]
            line = (
                f"label {label} is shown as {list(first)} in {one.mask} and as {list(second)} in {other.mask}: an "
                'editor that sorts palettes changes labels; if the colours are right, give them as "palette" of '
                "classes.json and add --set data.mask_values=color"
            )
            findings.append(DataFinding("warning", "palette", line, (str(one.mask), str(other.mask))))
            break
    return findings


def is_of_coco(samples: Sequence[Sample]) -> bool:
    """Return whether the masks of samples are COCO annotations."""
    return any(isinstance(sample.mask, CocoMask) for sample in samples)
