"""Folds of the labeled images for cross-validation: seeded, classes spread, groups kept whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmtool.data.samples import Sample
from gmtool.data.splits import format_split
from gmtool.data.splitting import Candidate, group_candidates
from gmtool.errors import UsageError
from gmtool.files import write_atomically


@dataclass(frozen=True)
class Fold:
    """One fit of a cross-validation."""

    labeled: tuple[Sample, ...]
    val: tuple[Sample, ...]
    """Labeled images that this fit does not see; each image is in one fold's."""


def choose_folds(
    candidates: Sequence[Candidate], count: int, *, seed: int, group_pattern: str | None = None
) -> tuple[Fold, ...]:
    """Divide labeled images into folds of about the same size.

    Groups with the rarest classes are dealt out first, each to the fold with the fewest images of its rarest
    class, so that every fold and every rest has as many classes as possible.

    Args:
        candidates: Labeled images.
        count: Number of folds.
        seed: Seed of the order.
        group_pattern: See `choose_labeled`.

    Raises:
        UsageError: Fewer groups than folds, fewer than two folds, or a pattern that is wrong or does not match.
    """
    groups = group_candidates(candidates, group_pattern)
    if not 2 <= count <= len(groups):
        what = "images" if group_pattern is None else "groups of images"
        raise UsageError(f"{count} folds of {len(groups)} labeled {what}: expected 2 to {len(groups)}")
    total = Counter(label for candidate in candidates for label in candidate.classes)
    order = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    rarest = {id(group): _rarest(group, total) for group in order}
    held: list[list[Candidate]] = [[] for _ in range(count)]
    for group in sorted(order, key=lambda each: total.get(rarest[id(each)], 0)):
        label = rarest[id(group)]
        target = min(held, key=lambda fold: (sum(label in one.classes for one in fold), len(fold)))
        target += group
    folds = []
    for fold in held:
        kept_out = {candidate.sample.id for candidate in fold}
        folds.append(
            Fold(
                tuple(one.sample for one in candidates if one.sample.id not in kept_out),
                tuple(one.sample for one in candidates if one.sample.id in kept_out),
            )
        )
    return tuple(folds)


def write_folds(folds: Sequence[Fold], out: Path) -> list[Path]:
    """Write labeled.txt and val.txt of each fold into `out/fold-1`, `out/fold-2`, ...; return these folders."""
    folders = []
    for number, fold in enumerate(folds, start=1):
        folder = out / f"fold-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, samples in (("labeled", fold.labeled), ("val", fold.val)):
            write_atomically(folder / f"{name}.txt", format_split(sample.id for sample in samples))
        folders.append(folder)
    return folders


def _rarest(group: Sequence[Candidate], total: Counter[int]) -> int:
    """Return the rarest class of a group; -1 for images without any."""
    labels = {label for candidate in group for label in candidate.classes}
    return min(labels, key=lambda label: (total[label], label), default=-1)
