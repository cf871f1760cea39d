"""Labeled images of a pool, found by the ids of a split list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from gmtool.data.splits import SplitEntry, read_split
from gmtool.errors import DataError
from gmtool_serving.inputs.collect import InputImage


def places_of_labeled(path: Path, images: Sequence[InputImage]) -> tuple[list[int], int]:
    """Return the places of the images that a split list names, and the number of names that are not in the pool.

    An id may have more or fewer leading folders than the image in the pool: `train/x` for `x`.

    Raises:
        DataError: The list cannot be read, none of its images is in the pool, or an id matches several.
    """
    by_ending: dict[str, list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        parts = image.output.parts
        for start in range(len(parts)):
            by_ending["/".join(parts[start:])].append(place)
    entries = read_split(path)
    found = [_find(entry, images, by_ending, path) for entry in entries]
    places = [place for place in found if place is not None]
    if not places:
        raise DataError(
            f"{path}: none of its {len(entries)} images is in the pool: it names {entries[0].name}, the pool has "
            f"{images[0].output}: give the folder of the labeled images as another POOL"
        )
    return places, len(entries) - len(places)


def _find(
    entry: SplitEntry, images: Sequence[InputImage], by_ending: dict[str, list[int]], path: Path
) -> int | None:
    parts = entry.name.split("/")
    for start in range(len(parts)):
        ending = "/".join(parts[start:])
        matching = by_ending.get(ending, [])
        exact = [place for place in matching if str(images[place].output) == ending]
        if len(exact or matching) > 1:
            first, second = (str(images[place]) for place in (exact or matching)[:2])
            raise DataError(f"{path}: {entry.name} matches {first} and {second}: give more of its path")
        if matching:
            return (exact or matching)[0]
    return None
