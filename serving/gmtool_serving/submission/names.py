"""Match submitted masks with images; check names, folders and number."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from gmtool.data.splits import read_split
from gmtool.errors import DataError
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.folders import below
from gmtool_serving.submission.files import SubmittedFile

Benchmark = Literal["voc", "cityscapes"]
ProblemKind = Literal["missing", "twice", "name", "place", "unreadable", "mode", "size", "label"]

CITYSCAPES_ID = re.compile(r"^[^_]+_\d{6}_\d{6}(?=[_.])")
"""City, sequence and frame; any text may follow."""
VOC_FOLDER = re.compile(r"results/VOC20\d\d/Segmentation/comp[56]_(train|val|trainval|test)_cls")


@dataclass(frozen=True)
class Problem:
    """Reason why the benchmark would refuse or misread the masks."""

    kind: ProblemKind
    file: str
    """Mask file; the image id of a missing mask; the source for all masks together."""
    message: str
    """Found and expected value."""


Match = tuple[SubmittedFile, str]
"""Mask file and image id."""


def images_by_id(benchmark: Benchmark, images: Path) -> dict[str, Path]:
    """Return the images of a folder by id.

    Raises:
        DataError: The folder is missing or contains no image.
    """
    if not images.is_dir():
        raise DataError(f"folder of images {images} does not exist")
    paths = [images / name for name in below(images, suffixes=IMAGE_SUFFIXES)]
    if benchmark == "voc":
        found = {path.stem: path for path in paths}
    else:
        matches = ((CITYSCAPES_ID.match(path.name), path) for path in paths)
        found = {match.group(): path for match, path in matches if match}
    if not found:
        named = "" if benchmark == "voc" else " named CITY_SEQUENCE_FRAME..."
        raise DataError(f"{images}: no image{named} in it")
    return found


def ids_in(benchmark: Benchmark, list_path: Path) -> list[str]:
    """Return the image ids in a list, without folders and suffixes.

    Raises:
        DataError: The list cannot be read, or a line is not an id.
    """
    names = [PurePosixPath(entry.name).name for entry in read_split(list_path)]
    if benchmark == "voc":
        return names
    matches = [CITYSCAPES_ID.match(f"{name}.") for name in names]
    for name, match in zip(names, matches, strict=True):
        if match is None:
            raise DataError(f"{list_path}: {name} is not a Cityscapes image: expected CITY_SEQUENCE_FRAME")
    return [match.group() for match in matches if match]


def assign_voc(
    files: Sequence[SubmittedFile], wanted: Sequence[str], *, archived: bool
) -> tuple[list[Match], list[Problem]]:
    """Match `ID.png` in the development kit's folder; in a folder on disk also at its top level."""
    placed = [file for file in files if VOC_FOLDER.fullmatch(str(file.name.parent))]
    problems = []
    if not placed and archived:
        expected = "results/VOC2012/Segmentation/comp6_test_cls/ (comp5 for models that saw VOC's data alone)"
        problems.append(Problem("place", str(files[0].name), f"expected all masks in {expected}"))
        placed = list(files)
    elif not placed:
        placed = [file for file in files if len(file.name.parts) == 1]
    if not placed:
        raise DataError(
            "no masks at the top level of the folder, nor in its results/VOC2012/Segmentation/comp6_test_cls"
        )
    matched: list[Match] = []
    asked = set(wanted)
    for folder in dict.fromkeys(file.name.parent for file in placed):
        inside = [file for file in placed if file.name.parent == folder]
        counts = Counter(file.name.stem for file in inside)
        matched += [(file, file.name.stem) for file in inside if not asked or file.name.stem in asked]
        problems += [_missing(name, str(folder / f"{name}.png")) for name in wanted if name not in counts]
        problems += [_twice(name, [f"{name}.png"] * count) for name, count in counts.items() if count > 1]
    return matched, problems


def assign_cityscapes(
    files: Sequence[SubmittedFile], wanted: Sequence[str], *, archived: bool
) -> tuple[list[Match], list[Problem]]:
    """Match `CITY_SEQUENCE_FRAME*.png` in any folder: exactly one an image."""
    ordered = sorted(files, key=lambda file: file.name.name)
    names = [file.name.name for file in ordered]
    problems: list[Problem] = []
    if not wanted:
        ids = {name: CITYSCAPES_ID.match(name) for name in names}
        problems += [
            Problem("name", name, "expected CITY_SEQUENCE_FRAME (six digits each) and any ending")
            for name, found in ids.items()
            if found is None
        ]
        wanted = sorted({found.group() for found in ids.values() if found})
    matched: list[Match] = []
    for name in wanted:
        first = bisect_left(names, name)
        found_files = [ordered[place] for place in _while_prefix(names, first, name)]
        if not found_files:
            problems.append(_missing(name, f"{name}*.png"))
        elif len(found_files) > 1:
            problems.append(_twice(name, [str(file.name) for file in found_files]))
        matched += [(file, name) for file in found_files]
    return matched, problems


def _while_prefix(names: Sequence[str], first: int, prefix: str) -> Iterator[int]:
    for place in range(first, len(names)):
        if not names[place].startswith(prefix):
            return
        yield place


def _missing(name: str, expected: str) -> Problem:
    return Problem("missing", name, f"no mask {expected}")


def _twice(name: str, found: Sequence[str]) -> Problem:
    return Problem("twice", name, f"{len(found)} masks: {', '.join(found[:3])}; expected one")
