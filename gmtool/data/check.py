"""Looking at data before a long run or a score depends on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gmtool.classes import ClassSet
from gmtool.config import DataConfig, MaskValues
from gmtool.data.datasets import Split, TrainingData
from gmtool.data.label_statistics import (
    LABELED_PARTS,
    Finding,
    LabelCounts,
    MaskLook,
    count_labels,
    file_findings,
    is_of_coco,
    label_findings,
    look_at_mask,
)
from gmtool.data.samples import Sample
from gmtool.errors import (
    ColorMaskError,
    DataError,
    ImageError,
    LabelError,
    MaskSizeError,
    RawIdError,
    some_names,
)
from gmtool.files import sha256_of_file
from gmtool.images import is_16_bit, open_image, orientation_of

KINDS: dict[type[DataError], str] = {
    ColorMaskError: "color mask",
    RawIdError: "raw ids",
    LabelError: "unknown label",
    MaskSizeError: "mask size",
}
"""What a finding is called by the error it comes from; all others are "unusable"."""
Progress = Callable[[Iterable["_Look"], int], Iterator["_Look"]]
"""Passes on what was looked at and shows how far it is; the number is how many there will be."""


@dataclass(frozen=True)
class DataReport:
    """What was found in a data set."""

    counts: dict[str, int]
    """Images by part: labeled, unlabeled, validation."""
    classes: ClassSet
    labeled: LabelCounts
    """Of the labeled masks that could be read."""
    val: LabelCounts
    """Of the validation masks that could be read."""
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
                    "labeled_images": int(self.labeled.images[index]),
                    "labeled_pixels": int(self.labeled.pixels[index]),
                    "val_images": int(self.val.images[index]),
                    "val_pixels": int(self.val.pixels[index]),
                }
                for index, name in enumerate(self.classes.names)
            ],
            "ignored_pixels": {"labeled": self.labeled.ignored, "validation": self.val.ignored},
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
    """(height, width) as it is read."""
    is_turned: bool = False
    """Its EXIF orientation is applied, and its size does not show it."""
    dark: str | None = None
    """Why it became dark, of a 16-bit image."""
    content: str = ""
    """SHA-256 of the image file."""
    mask: MaskLook | None = None


def check_masks(data: TrainingData, classes: ClassSet, config: DataConfig) -> list[Finding]:
    """Check that every mask can be read, has labels of its classes, and is as large as its image.

    The fast part of `check_data`: image headers and masks, for labeled and validation images.

    Returns:
        Warnings: what the labels say about how the masks were meant.

    Raises:
        DataError: What is wrong with the first such sample, and how many there are.
    """
    parts = {"labeled": data.labeled, "validation": data.val}
    looks = list(_look_at_all(parts, classes, config.mask_values, whole=False))
    findings = [*_problems(looks), *_doubts(looks, classes, config)]
    for finding in findings:
        if finding.severity == "error":
            raise DataError(finding.message)
    return findings


def check_data(data: TrainingData, classes: ClassSet, config: DataConfig, *, progress: Progress) -> DataReport:
    """Decode every image and mask and report what is wrong or likely to disappoint.

    Errors: unreadable files, colour-coded or raw-id masks taken for indices, labels out of range, masks of
    another size, one image in two parts, masks of one class and ignored pixels alone.
    Warnings: classes in no labeled or no validation image, many ignored pixels, masks as JPEG or with palettes
    in different orders, EXIF orientations that sizes do not show, dark 16-bit images, images smaller than the
    crop, one image twice in a part.
    """
    parts = {"labeled": data.labeled, "unlabeled": data.unlabeled, "validation": data.val}
    looks = list(progress(_look_at_all(parts, classes, config.mask_values, whole=True), _count(parts)))
    findings = _problems(looks)
    findings += _duplicates(looks)
    findings += _small_images(looks, config.crop_px)
    findings += _doubts(looks, classes, config)
    return DataReport(
        counts={part: len(split.samples) for part, split in parts.items()},
        classes=classes,
        labeled=count_labels(_masks_of(looks, "labeled"), classes),
        val=count_labels(_masks_of(looks, "validation"), classes),
        findings=tuple(findings),
    )


def _count(parts: dict[str, Split]) -> int:
    return sum(len(split.samples) for split in parts.values())


def _look_at_all(
    parts: dict[str, Split], classes: ClassSet, values: MaskValues, *, whole: bool
) -> Iterator[_Look]:
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        for part, split in parts.items():
            look = partial(_look, part, classes=classes, values=values, whole=whole)
            yield from pool.map(look, split.samples)


def _look(part: str, sample: Sample, *, classes: ClassSet, values: MaskValues, whole: bool) -> _Look:
    """Look at an image and its mask; without `whole` only 16-bit images are decoded: they may be dark."""
    try:
        image = open_image(sample.image_path)
        size, content, dark = sample.image_size(image), "", None
        if whole or is_16_bit(image):
            decoded = sample.decode()
            size, dark = (decoded.pixels.shape[0], decoded.pixels.shape[1]), decoded.dark
        if whole:
            content = sha256_of_file(sample.image_path)
        # A photo that was turned upside down, or is square, has its mask's size whichever way that lies
        orientation = orientation_of(image) if sample.reading.exif else 1
        is_turned = orientation in (2, 3, 4) or (orientation != 1 and size[0] == size[1])
        mask = None if sample.mask is None else look_at_mask(sample, classes, values=values, size=size)
    except DataError as error:
        return _Look(part, sample, error)
    return _Look(part, sample, None, size, is_turned, dark, content, mask)


def _masks_of(looks: list[_Look], part: str) -> list[MaskLook]:
    return [look.mask for look in looks if look.part == part and look.mask is not None]


def _problems(looks: list[_Look]) -> list[Finding]:
    """Return what cannot be used, one finding a kind."""
    by_kind: dict[str, list[_Look]] = defaultdict(list)
    for look in looks:
        if look.problem is not None:
            by_kind[KINDS.get(type(look.problem), "unusable")].append(look)
    findings = []
    for kind, bad in by_kind.items():
        files = tuple(_file_of(look) for look in bad)
        others = [Path(file).name for file in files[1:]]
        more = f" (and {len(others)} more such files: {some_names(others)})" if others else ""
        findings.append(Finding("error", kind, f"{bad[0].problem}{more}", files))
    return findings


def _file_of(look: _Look) -> str:
    """Return the file that a problem is of."""
    is_of_image = isinstance(look.problem, ImageError) and str(look.sample.image_path) in str(look.problem)
    return str(look.sample.image_path if is_of_image or look.sample.mask is None else look.sample.mask)


def _doubts(looks: list[_Look], classes: ClassSet, config: DataConfig) -> list[Finding]:
    """Return what may be meant otherwise. What could not be read proves nothing about the rest."""
    with_masks = [look for look in looks if look.sample.mask is not None]
    parts = {}
    for part in LABELED_PARTS:
        if all(look.problem is None for look in with_masks if look.part == part):
            parts[part] = count_labels(_masks_of(looks, part), classes)
    of_coco = is_of_coco([look.sample for look in with_masks])
    findings = label_findings(parts, classes, values=config.mask_values, of_coco=of_coco)
    findings += file_findings([(look.sample, look.mask) for look in with_masks if look.mask is not None])
    turned = tuple(str(look.sample.image_path) for look in with_masks if look.is_turned)
    if turned:
        line = (
            f"{len(turned)} images with a mask are turned or mirrored by their EXIF orientation, which their size "
            f"does not show: {some_names(turned)}; if the masks are as the files store the images: "
            "--set data.exif=ignore"
        )
        findings.append(Finding("warning", "orientation", line, turned))
    dark = [look for look in looks if look.dark is not None]
    if dark:
        files = tuple(str(look.sample.image_path) for look in dark)
        line = f"{len(dark)} images are dark ({some_names(files)}): {dark[0].dark}"
        findings.append(Finding("warning", "16 bits", line, files))
    return findings


def _duplicates(looks: list[_Look]) -> list[Finding]:
    by_content: dict[str, list[_Look]] = defaultdict(list)
    for look in looks:
        if look.content:
            by_content[look.content].append(look)
    by_severity: dict[Literal["error", "warning"], list[list[_Look]]] = defaultdict(list)
    for same in by_content.values():
        if len(same) > 1:
            parts = {look.part for look in same}
            by_severity["error" if "validation" in parts and len(parts) > 1 else "warning"].append(same)
    findings = []
    for severity, groups in by_severity.items():
        named = [f"{look.sample.image_path} ({look.part})" for look in groups[0]]
        more = f" (and {len(groups) - 1} more such images)" if len(groups) > 1 else ""
        line = f"one image {len(named)} times: {some_names(named)}{more}"
        files = tuple(str(look.sample.image_path) for same in groups for look in same)
        findings.append(Finding(severity, "duplicate", line, files))
    return findings


def _small_images(looks: list[_Look], crop_px: int) -> list[Finding]:
    small = [look for look in looks if look.part != "validation" and 0 < min(look.size) < crop_px]
    if not small:
        return []
    first, files = small[0], tuple(str(look.sample.image_path) for look in small)
    line = (
        f"{len(small)} training images are smaller than the crop of {crop_px} px, for example "
        f"{first.sample.image_path} ({first.size[1]}x{first.size[0]}): the rest of a crop is ignored"
    )
    return [Finding("warning", "small", line, files)]
