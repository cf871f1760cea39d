"""Ids and parts of imported images: names without suffix, and a validation part where the source has none."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from gmtool.errors import ConfigError
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.labels.dataset.manifest import Imported
from gmtool.labels.image_finder import PART_WORDS
from gmtool.labels.shapes import LabeledImage, PartName

PLAIN_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "data", "upload", "default", *PART_WORDS)
"""Leading folders that say nothing about an image."""


@dataclass(frozen=True)
class Place:
    """Place of an image in the data set."""

    part: PartName
    name: str
    """Path below the part's folder, without suffix."""

    @property
    def id(self) -> str:
        """Return the id, such as `train/x`."""
        return f"{self.part}/{self.name}"


def place_images(
    images: Sequence[LabeledImage],
    labeled: Sequence[bool],
    known: Mapping[str, Imported],
    *,
    val_share: float,
    group_pattern: str | None = None,
) -> list[Place]:
    """Return the place of each image; images of an earlier import stay where they are.

    Without a validation part in the source, a share of the labeled images becomes it: those whose group has the
    smallest hash, so that the choice does not depend on the order of files. It stays the same in later imports, so
    that their scores can be compared.

    Args:
        images: Images of the source.
        labeled: Whether each of them has labels.
        known: Images of earlier imports, by id.
        val_share: Share of labeled images for validation; 0 for none.
        group_pattern: Regular expression; images whose names match with the same text (its first bracket, or the
            whole match) stay together.

    Raises:
        ConfigError: The pattern is wrong.
    """
    names = _unique_names(images)
    before = {each.source: PurePosixPath(name) for name, each in known.items()}
    has_val = any(image.part == "val" for image in images) or any(name.startswith("val/") for name in known)
    free = [
        place
        for place, image in enumerate(images)
        if labeled[place] and image.part != "test" and image.name not in before
    ]
    chosen: set[int] = set()
    if not has_val and val_share > 0:
        chosen = _choose(free, names, math.ceil(val_share * len(free)), group_pattern)
    places: list[Place] = []
    taken = {str(before[image.name]) for image in images if image.name in before}
    for place, image in enumerate(images):
        if image.name in before:
            part, _, name = str(before[image.name]).partition("/")
            places.append(Place(PART_WORDS.get(part, "train"), name))
            continue
        own = Place("val" if place in chosen else image.part or "train", names[place])
        count = 1
        while own.id in taken:  # by an image of the same name that was imported before
            count += 1
            own = replace(own, name=f"{names[place]}_{count}")
        taken.add(own.id)
        places.append(own)
    return places


def _choose(free: list[int], names: list[str], count: int, pattern: str | None) -> set[int]:
    """Return whole groups in the order of their hash until there are `count` images, but not all."""
    groups: dict[str, list[int]] = {}
    for place in free:
        groups.setdefault(_group_of(names[place], pattern), []).append(place)
    chosen: set[int] = set()
    for group in sorted(groups, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()):
        if len(chosen) >= count or len(chosen) + len(groups[group]) >= len(free):
            continue
        chosen |= set(groups[group])
    return chosen


def _group_of(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise ConfigError(f"--group {pattern}: not a regular expression: {error}") from error
    if match is None:
        raise ConfigError(f"--group {pattern}: does not match {name}")
    return match[1] if match.re.groups else match[0]


def _unique_names(images: Sequence[LabeledImage]) -> list[str]:
    """Return names without suffix; images that differ only in their suffix keep it: `x_jpg` and `x_tif`."""
    plain = [_plain(image.name) for image in images]
    count = Counter((image.part, name) for image, name in zip(images, plain, strict=True))
    names = []
    for image, name in zip(images, plain, strict=True):
        suffix = PurePosixPath(image.name).suffix.lstrip(".").lower()
        names.append(f"{name}_{suffix}" if count[image.part, name] > 1 and suffix else name)
    return names


def _plain(name: str) -> str:
    """Return a name without suffix and without leading folders that say nothing."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    while len(parts) > 1 and parts[0].lower() in PLAIN_FOLDERS:
        parts.pop(0)
    path = "/".join(parts) or "image"
    return path[: -len(PurePosixPath(path).suffix)] if path.lower().endswith(IMAGE_SUFFIXES) else path
