"""Looking at data before a long run or a score depends on it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from gmtool.classes import ClassSet
from gmtool.config import DataConfig, MaskValues
from gmtool.datasets import Split, TrainingData
from gmtool.errors import ColorMaskError, DataError, LabelError, MaskSizeError, RawIdError
from gmtool.images import displayed_size, open_image, read_image
from gmtool.metrics import Int64Array
from gmtool.samples import Sample
from gmtool.truth import read_truth

KINDS: dict[type[DataError], str] = {
    ColorMaskError: "color mask",
    RawIdError: "raw ids",
    LabelError: "unknown label",
    MaskSizeError: "mask size",
}
"""What a finding is called by the error it comes from; all others are "unusable"."""
SYSTEMATIC = ("color mask", "raw ids", "unknown label")
"""Kinds of which a data set has one file or all: they become one finding."""

Progress = Callable[[Iterable["_Look"], int], Iterator["_Look"]]
"""Passes on what was looked at and shows how far it is; the number is how many there will be."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (error) or likely to disappoint (warning)."""

    severity: Literal["error", "warning"]
    kind: str
    """What it is, in a word or two: "unusable", "color mask", "duplicate", ..."""
    message: str


@dataclass(frozen=True)
class DataReport:
    """What was found in a data set."""

    counts: dict[str, int]
    """Images by part: labeled, unlabeled, validation."""
    classes: ClassSet
    labeled_pixels: Int64Array
    """(C,) pixels of each class in the labeled masks."""
    labeled_images: Int64Array
    """(C,) labeled images in which each class occurs."""
    val_pixels: Int64Array
    """(C,) pixels of each class in the validation masks."""
    findings: tuple[Finding, ...]

    @property
    def num_errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "images": self.counts,
            "classes": [
                {
                    "name": name,
                    "labeled_images": int(self.labeled_images[index]),
                    "labeled_pixels": int(self.labeled_pixels[index]),
                    "val_pixels": int(self.val_pixels[index]),
                }
                for index, name in enumerate(self.classes.names)
            ],
            "errors": self.num_errors,
            "findings": [asdict(finding) for finding in self.findings],
        }


@dataclass(frozen=True)
class _Look:
    """What one look at a sample gave."""

    part: str
    sample: Sample
    problem: DataError | None
    size: tuple[int, int] = (0, 0)
    """(height, width) as displayed."""
    content: str = ""
    """SHA-256 of the image file."""
    pixels: Int64Array | None = None
    """(C,) pixels of each class in its mask."""


def check_masks(samples: Sequence[Sample], classes: ClassSet, *, values: MaskValues) -> None:
    """Check that every mask can be read, has labels of its classes, and is as large as its image.

    The fast part of `check_data`: image headers and masks, for labeled and validation images.

    Raises:
        DataError: What is wrong with the first such sample, and how many there are.
    """

    def problem(sample: Sample) -> str | None:
        try:
            size = displayed_size(open_image(sample.image_path))
            read_truth(sample, classes, values=values, size=size)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:  # decoding PNG releases the interpreter lock
        problems = [found for found in pool.map(problem, samples) if found]
    if problems:
        more = f" (and {len(problems) - 1} more such files)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def check_data(data: TrainingData, classes: ClassSet, config: DataConfig, *, progress: Progress) -> DataReport:
    """Decode every image and mask and report what is wrong or likely to disappoint.

    Errors: unreadable files, colour-coded or raw-id masks taken for indices, labels out of range, masks of
    another size, one image in two parts.
    Warnings: classes in no labeled image, images smaller than the crop, one image twice in a part.
    """
    parts = {"labeled": data.labeled, "unlabeled": data.unlabeled, "validation": data.val}
    looks = list(progress(_look_at_all(parts, classes, config.mask_values), _count(parts)))
    findings = _problems(looks)
    findings += _duplicates(looks)
    findings += _small_images(looks, config.crop_px)
    labeled = [look.pixels for look in looks if look.part == "labeled" and look.pixels is not None]
    val = [look.pixels for look in looks if look.part == "validation" and look.pixels is not None]
    none = np.zeros(len(classes), dtype=np.int64)
    report = DataReport(
        counts={part: len(split.samples) for part, split in parts.items()},
        classes=classes,
        labeled_pixels=sum(labeled, none),
        labeled_images=sum(((pixels > 0).astype(np.int64) for pixels in labeled), none),
        val_pixels=sum(val, none),
        findings=tuple(findings),
    )
    missing = [name for name, count in zip(classes.names, report.labeled_images, strict=True) if not count]
    if not missing:
        return report
    line = f"{len(missing)} of {len(classes)} classes occur in no labeled image: {', '.join(missing)}"
    return replace(report, findings=(*findings, Finding("warning", "missing class", line)))


def _count(parts: dict[str, Split]) -> int:
    return sum(len(split.samples) for split in parts.values())


def _look_at_all(parts: dict[str, Split], classes: ClassSet, values: MaskValues) -> Iterator[_Look]:
    with ThreadPoolExecutor() as pool:
        for part, split in parts.items():
            yield from pool.map(lambda sample, part=part: _look(part, sample, classes, values), split.samples)


def _look(part: str, sample: Sample, classes: ClassSet, values: MaskValues) -> _Look:
    try:
        image = read_image(sample.image_path)
        size = (image.shape[0], image.shape[1])
        content = hashlib.sha256(sample.image_path.read_bytes()).hexdigest()
        if sample.mask is None:
            return _Look(part, sample, None, size, content)
        mask = read_truth(sample, classes, values=values, size=size)
    except DataError as error:
        return _Look(part, sample, error)
    return _Look(part, sample, None, size, content, np.bincount(mask.ravel(), minlength=256)[: len(classes)])


def _problems(looks: list[_Look]) -> list[Finding]:
    by_kind: dict[str, list[str]] = defaultdict(list)
    for look in looks:
        if look.problem is not None:
            by_kind[KINDS.get(type(look.problem), "unusable")].append(str(look.problem))
    findings = []
    for kind, messages in by_kind.items():
        if kind in SYSTEMATIC and len(messages) > 1:
            more = f"{messages[0]} (and {len(messages) - 1} more such masks)"
            findings.append(Finding("error", kind, more))
        else:
            findings += [Finding("error", kind, message) for message in messages]
    return findings


def _duplicates(looks: list[_Look]) -> list[Finding]:
    by_content: dict[str, list[_Look]] = defaultdict(list)
    for look in looks:
        if look.content:
            by_content[look.content].append(look)
    findings = []
    for same in by_content.values():
        if len(same) == 1:
            continue
        parts = sorted({look.part for look in same})
        names = ", ".join(f"{look.sample.image_path} ({look.part})" for look in same)
        severity: Literal["error", "warning"] = "error" if "validation" in parts and len(parts) > 1 else "warning"
        findings.append(Finding(severity, "duplicate", f"one image {len(same)} times: {names}"))
    return findings


def _small_images(looks: list[_Look], crop_px: int) -> list[Finding]:
    small = [look for look in looks if look.part != "validation" and 0 < min(look.size) < crop_px]
    if not small:
        return []
    first = small[0]
    line = (
        f"{len(small)} training images are smaller than the crop of {crop_px} px, for example "
        f"{first.sample.image_path} ({first.size[1]}x{first.size[0]}): the rest of a crop is ignored"
    )
    return [Finding("warning", "small", line)]
