"""Check masks before submission: names, number, size, mode and labels, by the benchmarks' official scripts."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmtool.errors import DataError
from gmtool.images import MAX_PIXELS, displayed_size, open_image
from gmtool_serving.submission.files import SubmittedFile, open_submission
from gmtool_serving.submission.names import (
    Benchmark,
    Match,
    Problem,
    ProblemKind,
    assign_cityscapes,
    assign_voc,
    ids_in,
    images_by_id,
)

Size = tuple[int, int]
"""(height, width)."""
CheckProgress = Callable[[Sequence[SubmittedFile]], Iterable[SubmittedFile]]

LARGEST_LABEL: dict[Benchmark, int] = {"voc": 20, "cityscapes": 33}
MODES: dict[Benchmark, tuple[str, ...]] = {"voc": ("P", "L", "1"), "cityscapes": ("P", "L")}
CITYSCAPES_SIZE: Size = (1024, 2048)
CITYSCAPES_SCORED = {7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33}
NUM_TRAIN_IDS = 19
AT_ONCE = 32
"""Masks in memory at the same time."""
WORKERS = 2


@dataclass(frozen=True)
class SubmissionReport:
    """Result of a submission check."""

    benchmark: Benchmark
    source: str
    masks: int
    """Number of checked masks."""
    expected: int | None
    """Number of images that need a mask; None without images and list."""
    compared_sizes: bool
    """Mask sizes were compared with the images; else Cityscapes masks with 2048x1024, VOC masks not."""
    surplus: int
    """Masks of other images, which the official scripts ignore."""
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "benchmark": self.benchmark,
            "source": self.source,
            "acceptable": not self.problems,
            "masks": self.masks,
            "expected": self.expected,
            "compared_sizes": self.compared_sizes,
            "surplus": self.surplus,
            "counts": dict(Counter(problem.kind for problem in self.problems)),
            "problems": [vars(problem) for problem in self.problems],
        }


def check_submission(
    benchmark: Benchmark,
    source: Path,
    *,
    images: Path | None = None,
    list_path: Path | None = None,
    progress: CheckProgress = iter,
) -> SubmissionReport:
    """Check masks by the rules of VOCevalseg.m or of cityscapesScripts' evalPixelLevelSemanticLabeling.

    Beyond those, Cityscapes masks of trainIds are a problem: the script would score them as other classes.

    Args:
        benchmark: Benchmark whose rules apply.
        source: Folder of masks, or a tar or zip archive of one.
        images: Folder of the images (for Cityscapes also of the ground truth): gives the sizes and, without
            `list_path`, the images that need a mask.
        list_path: List of the images that need a mask.
        progress: Progress bar over the files.

    Raises:
        DataError: The source, the images or the list cannot be read, or there is no mask.
    """
    # Find the images that need a mask
    known = images_by_id(benchmark, images) if images else {}
    wanted = ids_in(benchmark, list_path) if list_path else sorted(known)
    unknown = [name for name in wanted if images and name not in known]
    if unknown:
        raise DataError(f"{images}: {len(unknown)} images of {list_path} are not in it, such as {unknown[0]}")
    # Match masks with images, and check each mask
    with open_submission(source) as files:
        assign = assign_voc if benchmark == "voc" else assign_cityscapes
        matched, problems = assign(files, wanted, archived=not source.is_dir())
        labels: set[int] = set()
        for name, found, seen in _decoded(benchmark, matched, known, progress):
            problems += [Problem(kind, name, message) for kind, message in found]
            labels |= seen
    if benchmark == "cityscapes" and max(labels, default=0) < NUM_TRAIN_IDS and labels - CITYSCAPES_SCORED - {0}:
        message = "all labels are below 19, and some are not evaluated: these are trainIds; expected label ids"
        problems.append(Problem("label", str(source), message))
    # Report
    return SubmissionReport(
        benchmark=benchmark,
        source=str(source),
        masks=len(matched),
        expected=len(wanted) if images or list_path else None,
        compared_sizes=bool(known),
        surplus=len(files) - len(matched),
        problems=tuple(problems),
    )


MaskProblem = tuple[ProblemKind, str]


def _decoded(
    benchmark: Benchmark, matched: Sequence[Match], known: Mapping[str, Path], progress: CheckProgress
) -> Iterator[tuple[str, list[MaskProblem], set[int]]]:
    """Yield name, problems and labels of each mask."""
    ids = {id(file): name for file, name in matched}

    def look(file: SubmittedFile, content: bytes | Exception) -> tuple[str, list[MaskProblem], set[int]]:
        if isinstance(content, Exception):
            return str(file.name), [("unreadable", f"cannot be read: {content}")], set()
        image = known.get(ids[id(file)])
        expected = _size_of(image) if image else CITYSCAPES_SIZE if benchmark == "cityscapes" else None
        found, labels = _look_at(benchmark, content, expected)
        return str(file.name), found, labels

    files = iter(progress([file for file, _ in matched]))
    with ThreadPoolExecutor(WORKERS) as pool:
        while some := list(islice(files, AT_ONCE)):
            yield from pool.map(look, some, [_content(file) for file in some])


def _content(file: SubmittedFile) -> bytes | Exception:
    try:
        return file.read()
    except Exception as error:  # damaged archives raise many types
        return error


def _look_at(benchmark: Benchmark, content: bytes, expected: Size | None) -> tuple[list[MaskProblem], set[int]]:
    """Return problems and labels of one mask."""
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG",))
        if image.mode not in MODES[benchmark]:
            return [("mode", f"mode {image.mode}; expected one channel of 8 bits")], set()
        size = (image.height, image.width)
        if expected is not None and size != expected:
            return [("size", f"{_text(size)} pixels; expected {_text(expected)}")], set()
        if size[0] * size[1] > MAX_PIXELS:
            return [("size", f"{_text(size)} pixels; the limit is {MAX_PIXELS} in all")], set()
        counts = np.bincount(np.asarray(image, dtype=np.uint8).ravel(), minlength=256)
    except Exception as error:  # Pillow raises many types for damaged files
        return [("unreadable", f"not a whole PNG: {error}")], set()
    labels = np.flatnonzero(counts).tolist()
    largest = LARGEST_LABEL[benchmark]
    wrong = [label for label in labels if label > largest]
    if not wrong:
        return [], set(labels)
    more = ": ignored pixels must be 0" if wrong == [255] else ""
    text = ", ".join(map(str, wrong[:5]))
    pixels = int(counts[wrong].sum())
    return [("label", f"label {text} on {pixels} pixels; expected 0 to {largest}{more}")], set(labels)


def _text(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def _size_of(path: Path) -> Size:
    image = open_image(path)
    # Not `displayed_size`: Pillow would decode a whole PNG to find EXIF behind its pixels
    return (image.height, image.width) if image.format == "PNG" else displayed_size(image)
