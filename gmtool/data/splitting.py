"""Choice of labeled images: seeded, every class if possible, groups kept whole."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.classes import ClassSet
from gmtool.config import MaskValues
from gmtool.data.datasets import Split
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.data.splits import format_split
from gmtool.errors import UsageError
from gmtool.files import write_atomically


@dataclass(frozen=True)
class Candidate:
    """Training image with the classes in its mask."""

    sample: Sample
    classes: frozenset[int]
    """Class indices in its mask."""


@dataclass(frozen=True)
class LabeledChoice:
    """Partition of the training images into labeled and unlabeled, in their order."""

    labeled: tuple[Sample, ...]
    unlabeled: tuple[Sample, ...]
    missing: frozenset[int]
    """Classes of the training images that no labeled image has."""


def write_choice(
    chosen: LabeledChoice,
    out: Path,
    *,
    seed: int,
    group: str | None,
    classes: ClassSet,
    val: Sequence[Sample] = (),
) -> list[str]:
    """Write labeled.txt, unlabeled.txt and val.txt, if there are such images, and split.json with their seed.

    Returns:
        Names of the classes that no labeled image has.
    """
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"seed": seed, "group": group}
    for name, samples in (("labeled", chosen.labeled), ("unlabeled", chosen.unlabeled), ("val", tuple(val))):
        if not samples:
            continue
        write_atomically(out / f"{name}.txt", format_split(sample.id for sample in samples))
        record |= {name: len(samples), f"{name}_sha256": Split(name, samples).sha256}
    missing = [classes.names[label] for label in sorted(chosen.missing)]
    record["classes_without_label"] = missing
    write_atomically(out / "split.json", json.dumps(record, indent=1) + "\n")
    return missing


def read_candidates(samples: Sequence[Sample], classes: ClassSet, *, values: MaskValues) -> list[Candidate]:
    """Return images with the classes in their masks.

    Raises:
        DataError: A mask cannot be used.
    """
    return [
        Candidate(sample, frozenset(np.unique(truth).tolist()) - {classes.ignore_index})
        for sample in samples
        for truth in [read_truth(sample, classes, values=values)]
    ]


def choose_labeled(
    candidates: Sequence[Candidate], count: int, *, seed: int, group_pattern: str | None = None
) -> LabeledChoice:
    """Choose `count` labeled images.

    For each class, rarest first, take the first group with it in a seeded order, unless a chosen group has it;
    then fill up in the seeded order. Groups stay whole, so fewer than `count` images may be chosen.

    Args:
        candidates: Training images.
        count: Number of labeled images.
        seed: Seed of the order.
        group_pattern: Regular expression; images whose ids match with the same text (its first bracket, or
            the whole match) are one group, such as the frames of a video. None: each image is a group.

    Raises:
        UsageError: `count` is not between 1 and one less than the images, the pattern is wrong or does not
            match an id, or not even one group fits.
    """
    if not 1 <= count < len(candidates):
        raise UsageError(f"{count} labeled images of {len(candidates)}: expected 1 to {len(candidates) - 1}")
    # Groups in a seeded order
    groups = group_candidates(candidates, group_pattern)
    order = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    chosen: list[list[Candidate]] = []
    size = 0

    def take(group: list[Candidate]) -> bool:
        nonlocal size
        if group in chosen or size + len(group) > count:
            return False
        chosen.append(group)
        size += len(group)
        return True

    # One group for each class, then the rest
    for label in _rarest_first(candidates):
        if label not in _classes_of(chosen):
            any(take(group) for group in order if label in _classes_of([group]))
    for group in order:
        take(group)
    if not chosen:
        raise UsageError(f"the smallest group has more than {count} images: raise --count")
    # Split in the order of the candidates
    labeled = {candidate.sample.id for group in chosen for candidate in group}
    return LabeledChoice(
        labeled=tuple(candidate.sample for candidate in candidates if candidate.sample.id in labeled),
        unlabeled=tuple(candidate.sample for candidate in candidates if candidate.sample.id not in labeled),
        missing=_classes_of([list(candidates)]) - _classes_of(chosen),
    )


def group_candidates(candidates: Sequence[Candidate], pattern: str | None) -> list[list[Candidate]]:
    """Return images in groups: those whose ids match with the same text; without a pattern, each alone.

    Raises:
        UsageError: The pattern is wrong or does not match an id.
    """
    if pattern is None:
        return [[candidate] for candidate in candidates]
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--group {pattern}: not a regular expression: {error}") from error
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        match = compiled.search(candidate.sample.id)
        if match is None:
            raise UsageError(f"--group {pattern} does not match {candidate.sample.id}")
        groups[match.group(1) if compiled.groups else match.group()].append(candidate)
    return list(groups.values())


def _rarest_first(candidates: Sequence[Candidate]) -> list[int]:
    counts: dict[int, int] = defaultdict(int)
    for candidate in candidates:
        for label in candidate.classes:
            counts[label] += 1
    return sorted(counts, key=lambda label: (counts[label], label))


def _classes_of(groups: Sequence[Sequence[Candidate]]) -> frozenset[int]:
    return frozenset(label for group in groups for candidate in group for label in candidate.classes)
