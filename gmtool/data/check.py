"""Check images and masks of a data set, in full or before training."""

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
    DataFinding,
    LabelCounts,
    MaskContent,
    count_labels,
    file_findings,
    is_of_coco,
    label_findings,
    read_content,
)
from gmtool.data.recognize import ignores_on_purpose
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
"""Kind of a finding by its error; other errors are "unusable"."""
ProgressBar = Callable[[Iterable["_CheckedSample"], int], Iterator["_CheckedSample"]]
"""Yields checked samples and shows a progress bar; the number is the total."""


@dataclass(frozen=True)
class DataReport:
    """Result of a data check: counts of images and labels, and findings."""

    counts: dict[str, int]
    """Images by part: labeled, unlabeled, validation."""
    classes: ClassSet
    labeled: LabelCounts
    """Counts of the readable labeled masks."""
    val: LabelCounts
    """Counts of the readable validation masks."""
    findings: tuple[DataFinding, ...]

    @property
    def num_errors(self) -> int:
        """Number of findings that are errors."""
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
class _CheckedSample:
    """Sample with its problem, or with size, EXIF, hash and labels."""

    part: str
    sample: Sample
    problem: DataError | None
    size: tuple[int, int] = (0, 0)
    """(height, width) after reading, pixels."""
    is_turned: bool = False
    """Whether an EXIF orientation is applied that keeps the size."""
    dark: str | None = None
    """Reason and remedy if a 16-bit image became dark."""
    content: str = ""
    """SHA-256 of the image file; empty if not computed."""
    mask: MaskContent | None = None


def check_masks(data: TrainingData, classes: ClassSet, config: DataConfig) -> list[DataFinding]:
    """Check that every mask is readable, has only labels of its classes, and has the size of its image.

    Fast part of `check_data`: image headers and masks of labeled and validation images.

    Returns:
        Warnings about encoding, classes and orientation of the masks.

    Raises:
        DataError: A sample is unusable; the message has the first problem and the number of files.
    """
    parts = {"labeled": data.labeled, "validation": data.val}
    checked = list(_check_all(parts, classes, config.mask_values, whole=False))
    findings = [*_problems(checked), *_warnings(checked, classes, config)]
    for finding in findings:
        if finding.severity == "error":
            raise DataError(finding.message)
    return findings


def check_data(data: TrainingData, classes: ClassSet, config: DataConfig, *, progress: ProgressBar) -> DataReport:
    """Decode every image and mask; report errors and warnings.

    Errors: unreadable files, colour-coded or raw-id masks read as indices, labels out of range, masks of
    another size, an image in both training and validation, masks of only one class and ignored pixels.
    Warnings: classes missing in labeled or validation images, many ignored pixels, JPEG masks, palettes in
    different orders, EXIF orientations that keep the size, dark 16-bit images, images smaller than the crop,
    duplicate images.
    """
    parts = {"labeled": data.labeled, "unlabeled": data.unlabeled, "validation": data.val}
    checked = list(progress(_check_all(parts, classes, config.mask_values, whole=True), _count(parts)))
    findings = _problems(checked)
    findings += _duplicates(checked)
    findings += _small_images(checked, config.crop_px)
    findings += _warnings(checked, classes, config)
    return DataReport(
        counts={part: len(split.samples) for part, split in parts.items()},
        classes=classes,
        labeled=count_labels(_masks_of(checked, "labeled"), classes),
        val=count_labels(_masks_of(checked, "validation"), classes),
        findings=tuple(findings),
    )


def _count(parts: dict[str, Split]) -> int:
    return sum(len(split.samples) for split in parts.values())


def _check_all(
    parts: dict[str, Split], classes: ClassSet, values: MaskValues, *, whole: bool
) -> Iterator[_CheckedSample]:
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        for part, split in parts.items():
            check = partial(_check, part, classes=classes, values=values, whole=whole)
            yield from pool.map(check, split.samples)


def _check(part: str, sample: Sample, *, classes: ClassSet, values: MaskValues, whole: bool) -> _CheckedSample:
    """Check an image and its mask; without `whole`, only 16-bit images are decoded, since they may be dark."""
    try:
        image = open_image(sample.image_path)
        size, content, dark = sample.image_size(image), "", None
        if whole or is_16_bit(image):
            decoded = sample.decode()
            size, dark = (decoded.pixels.shape[0], decoded.pixels.shape[1]), decoded.dark
        if whole:
            content = sha256_of_file(sample.image_path)
        # These orientations keep the size, so a mask stored in the other orientation is not noticed by its size
        orientation = orientation_of(image) if sample.reading.exif else 1
        is_turned = orientation in (2, 3, 4) or (orientation != 1 and size[0] == size[1])
        mask = None if sample.mask is None else read_content(sample, classes, values=values, size=size)
    except DataError as error:
        return _CheckedSample(part, sample, error)
    return _CheckedSample(part, sample, None, size, is_turned, dark, content, mask)


def _masks_of(checked: list[_CheckedSample], part: str) -> list[MaskContent]:
    return [each.mask for each in checked if each.part == part and each.mask is not None]


def _problems(checked: list[_CheckedSample]) -> list[DataFinding]:
    """Return the errors of unusable samples, one finding a kind."""
    by_kind: dict[str, list[_CheckedSample]] = defaultdict(list)
    for each in checked:
        if each.problem is not None:
            by_kind[KINDS.get(type(each.problem), "unusable")].append(each)
    findings = []
    for kind, bad in by_kind.items():
        files = tuple(_file_of(each) for each in bad)
        others = [Path(file).name for file in files[1:]]
        more = f" (and {len(others)} more such files: {some_names(others)})" if others else ""
        findings.append(DataFinding("error", kind, f"{bad[0].problem}{more}", files))
    return findings


def _file_of(each: _CheckedSample) -> str:
    """Return the file that has the problem."""
    is_of_image = isinstance(each.problem, ImageError) and str(each.sample.image_path) in str(each.problem)
    return str(each.sample.image_path if is_of_image or each.sample.mask is None else each.sample.mask)


def _warnings(checked: list[_CheckedSample], classes: ClassSet, config: DataConfig) -> list[DataFinding]:
    """Return warnings about encoding, classes and orientation; labels only of parts without unreadable masks."""
    with_masks = [each for each in checked if each.sample.mask is not None]
    parts = {}
    for part in LABELED_PARTS:
        if all(each.problem is None for each in with_masks if each.part == part):
            parts[part] = count_labels(_masks_of(checked, part), classes)
    of_coco = is_of_coco([each.sample for each in with_masks])
    findings = label_findings(parts, classes, values=config.mask_values, of_coco=of_coco)
    if ignores_on_purpose(config.root):
        findings = [finding for finding in findings if finding.kind != "ignored" or finding.severity == "error"]
    findings += file_findings([(each.sample, each.mask) for each in with_masks if each.mask is not None])
    turned = tuple(str(each.sample.image_path) for each in with_masks if each.is_turned)
    if turned:
        line = (
            f"{len(turned)} images with a mask are turned or mirrored by their EXIF orientation, which their size "
            f"does not show: {some_names(turned)}; if the masks are as the files store the images: "
            "--set data.exif=ignore"
        )
        findings.append(DataFinding("warning", "orientation", line, turned))
    dark = [each for each in checked if each.dark is not None]
    if dark:
        files = tuple(str(each.sample.image_path) for each in dark)
        line = f"{len(dark)} images are dark ({some_names(files)}): {dark[0].dark}"
        findings.append(DataFinding("warning", "16 bits", line, files))
    return findings


def _duplicates(checked: list[_CheckedSample]) -> list[DataFinding]:
    by_content: dict[str, list[_CheckedSample]] = defaultdict(list)
    for each in checked:
        if each.content:
            by_content[each.content].append(each)
    by_severity: dict[Literal["error", "warning"], list[list[_CheckedSample]]] = defaultdict(list)
    for same in by_content.values():
        if len(same) > 1:
            parts = {each.part for each in same}
            by_severity["error" if "validation" in parts and len(parts) > 1 else "warning"].append(same)
    findings = []
    for severity, groups in by_severity.items():
        named = [f"{each.sample.image_path} ({each.part})" for each in groups[0]]
        more = f" (and {len(groups) - 1} more such images)" if len(groups) > 1 else ""
        line = f"one image {len(named)} times: {some_names(named)}{more}"
        files = tuple(str(each.sample.image_path) for same in groups for each in same)
        findings.append(DataFinding(severity, "duplicate", line, files))
    return findings


def _small_images(checked: list[_CheckedSample], crop_px: int) -> list[DataFinding]:
    small = [each for each in checked if each.part != "validation" and 0 < min(each.size) < crop_px]
    if not small:
        return []
    first, files = small[0], tuple(str(each.sample.image_path) for each in small)
    line = (
        f"{len(small)} training images are smaller than the crop of {crop_px} px, for example "
        f"{first.sample.image_path} ({first.size[1]}x{first.size[0]}): the rest of a crop is ignored"
    )
    return [DataFinding("warning", "small", line, files)]
