"""Report of an import: what was found, what was written, what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gmtool.errors import some_names
from gmtool.labels.shapes import Problem

SHOWN = 3
"""Messages of a kind that are printed; import_report.json has all."""


@dataclass
class ImportReport:
    """Counts and problems of an import."""

    found: str
    """Tool and files that were recognised."""
    of_masks: bool = False
    """Whether the labels are mask files, not shapes."""
    classes: tuple[str, ...] = ()
    added_classes: tuple[str, ...] = ()
    """Classes that the data set did not have before."""
    ground: str = ""
    """What pixels without a label are, and why."""
    overlap_rule: str = ""
    """Which of two shapes is on top."""
    parts: dict[str, int] = field(default_factory=dict)
    """Images by part, of all imports."""
    labeled: dict[str, int] = field(default_factory=dict)
    """Labeled images by part, of all imports."""
    objects: Counter[str] = field(default_factory=Counter)
    """Shapes by label, of this import; of mask files, the images with the label."""
    images_with: Counter[str] = field(default_factory=Counter)
    """Images by label."""
    changes: Counter[str] = field(default_factory=Counter)
    """Masks by what happened: new, updated, unchanged, kept."""
    overlap_px: int = 0
    overlap_images: int = 0
    covered_share: float = 0.0
    """Share of pixels with a label, of labeled images."""
    problems: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as lines for a terminal."""
        lines = [f"found: {self.found}"]
        labeled = ", ".join(
            f"{part} {count} ({self.labeled.get(part, 0)} labeled)" for part, count in self.parts.items()
        )
        lines.append(f"images: {labeled or 'none'}")
        lines.append(f"masks: {_counted(self.changes) or 'none'}")
        if self.changes["without labels"]:
            lines.append("images without labels are not labeled yet; if nothing is on them: --empty-is background")
        lines.append(f"classes: {', '.join(self.classes)}")
        if self.added_classes:
            lines.append(f"new classes: {', '.join(self.added_classes)}")
        most = self.objects.most_common()
        counts = [
            f"{name} in {count} images" if self.of_masks else f"{name} {count} in {self.images_with[name]} images"
            for name, count in most
        ]
        if counts:
            lines.append(f"labels: {', '.join(counts)}")
        lines.append(f"ground without a label: {self.ground}")
        if self.overlap_px:
            lines.append(
                f"overlaps: {self.overlap_px} pixels in {self.overlap_images} images; {self.overlap_rule}"
            )
        return [*lines, *problem_lines(self.problems)]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        by_kind: dict[str, list[str]] = {}
        for problem in self.problems:
            by_kind.setdefault(problem.kind, []).append(problem.message)
        return {
            "found": self.found,
            "classes": list(self.classes),
            "added_classes": list(self.added_classes),
            "unlabeled_is": self.ground,
            "images": self.parts,
            "labeled": self.labeled,
            "masks": dict(self.changes),
            "objects": dict(self.objects),
            "images_with": dict(self.images_with),
            "overlap_pixels": self.overlap_px,
            "overlap_images": self.overlap_images,
            "overlap_rule": self.overlap_rule,
            "covered_share": self.covered_share,
            "problems": by_kind,
        }


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """Return a line a kind: its count, and the first messages."""
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    lines = []
    for kind, listed in by_kind.items():
        if len(listed) == 1:
            lines.append(f"warning: {listed[0].message}")
        else:
            others = some_names([problem.where for problem in listed[1:]], SHOWN - 1)
            lines.append(f"warning: {len(listed)} {kind}: {listed[0].message}; also {others}")
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
