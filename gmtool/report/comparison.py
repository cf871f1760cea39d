"""Compare results over the same images: differences with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gmtool.errors import DataError, some_names
from gmtool.escaping import markdown_text
from gmtool.masks.sources import image_key
from gmtool.report.image_scores import Difference, ImageScores, Interval, miou_interval, paired_difference
from gmtool.report.metrics import Float64Array, mean_of_known, ratio
from gmtool.report.report import IoUReport, percent
from gmtool.report.tables import interval_text

NUM_CHANGED = 5
"""Number of images with the largest gains and losses."""


@dataclass(frozen=True)
class Result:
    """Scores of one result over the common images."""

    name: str
    model: str
    miou: float
    interval: Interval | None
    iou: Float64Array
    """(C,) in [0, 1]; NaN for a class in neither map."""
    image_miou: Float64Array
    """(N,) in [0, 1]."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of the first result with each other result."""

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    """Ids of the images that all results have."""
    only_in_some: tuple[str, ...]
    """Ids of images that some results lack; they are not compared."""
    results: tuple[Result, ...]
    differences: tuple[Difference, ...]
    """First result minus the second, the third and so on."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, ratios in [0, 1]."""
        first = self.results[0]
        return {
            "num_images": len(self.ids),
            "only_in_some": list(self.only_in_some),
            "results": [
                {
                    "name": result.name,
                    "model": result.model,
                    "miou": result.miou,
                    "miou_interval": None if result.interval is None else asdict(result.interval),
                    "iou": dict(zip(self.classes, _nulls(result.iou), strict=True)),
                }
                for result in self.results
            ],
            "differences": [
                {
                    "of": first.name,
                    "minus": other.name,
                    "miou": difference.miou,
                    "interval": None if difference.interval is None else asdict(difference.interval),
                    "better_in_resamples": difference.better,
                    "verdict": verdict(difference),
                    "iou": dict(zip(self.classes, _nulls(difference.iou), strict=True)),
                }
                for other, difference in zip(self.results[1:], self.differences, strict=True)
            ],
        }

    def changed_images(self, other: int) -> list[tuple[str, float, float]]:
        """Return (id, mIoU of the first result, of the other) for the largest gains, then losses."""
        ours, theirs = self.results[0].image_miou, self.results[other].image_miou
        order = (ours - theirs).argsort(kind="stable")
        gains = [place for place in order[::-1][:NUM_CHANGED] if ours[place] > theirs[place]]
        losses = [place for place in order[:NUM_CHANGED] if ours[place] < theirs[place]]
        return [(self.ids[place], float(ours[place]), float(theirs[place])) for place in [*gains, *losses]]


def compare(report: IoUReport, others: Sequence[IoUReport]) -> Comparison:
    """Compare a result with others over their common images.

    Raises:
        DataError: Different classes, different ground truth of an image, or no common image.
    """
    reports = [report, *others]
    images = [_images(each) for each in reports]
    for each in others:
        if each.classes.names != report.classes.names:
            raise DataError(f"{each.provenance.model} was scored on other classes than {report.provenance.model}")
    # Images that all results have
    places = [{image_key(name): place for place, name in enumerate(scores.ids)} for scores in images]
    shared = [key for key in places[0] if all(key in each for each in places[1:])]
    if not shared:
        raise DataError(f"{others[0].provenance.model} was scored on other images: no common image id")
    aligned = [
        _aligned(scores, [each[key] for key in shared], shared)
        for scores, each in zip(images, places, strict=True)
    ]
    # The same ground truth, then scores
    for other, scores in zip(others, aligned[1:], strict=True):
        _refuse_other_truth(aligned[0], scores, other)
    results = [
        Result(name, each.provenance.model, *_score(scores))
        for name, each, scores in zip(_names(reports), reports, aligned, strict=True)
    ]
    return Comparison(
        classes=report.classes.names,
        ids=tuple(shared),
        only_in_some=tuple(sorted(set().union(*places) - set(shared))),
        results=tuple(results),
        differences=tuple(paired_difference(aligned[0], scores) for scores in aligned[1:]),
    )


def verdict(difference: Difference) -> str:
    """Return the verdict of an interval as text."""
    interval = difference.interval
    if interval is None:
        return "too few images to tell"
    if interval.low > 0:
        return "better"
    return "worse" if interval.high < 0 else "no difference shown"


def comparison_markdown(comparison: Comparison) -> str:
    """Return a comparison as Markdown: scores, differences, classes."""
    first = comparison.results[0]
    first_name, *_ = names = [markdown_text(result.name) for result in comparison.results]
    lines = [
        # Scores and differences
        f"# {first_name} against {', '.join(names[1:])}",
        "",
        f"{len(comparison.ids)} common images; each resample draws the same images for all results.",
        "",
        "| result | mIoU % | 95 % interval | first minus this one, points | 95 % interval | |",
        "|---|---:|---:|---:|---:|---|",
        f"| {first_name} | {percent(first.miou)} | {interval_text(first.interval)} | | | |",
        *(
            f"| {name} | {percent(result.miou)} | {interval_text(result.interval)} "
            f"| {points(difference.miou)} | {points_text(difference.interval)} | {verdict(difference)} |"
            for name, result, difference in zip(
                names[1:], comparison.results[1:], comparison.differences, strict=True
            )
        ),
        "",
        # Classes
        f"| class | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
        *(
            f"| {name} | {' | '.join(percent(result.iou[index]) for result in comparison.results)} |"
            for index, name in enumerate(map(markdown_text, comparison.classes))
        ),
    ]
    if comparison.only_in_some:
        left_out = markdown_text(some_names(comparison.only_in_some))
        lines += [
            "",
            f"{len(comparison.only_in_some)} images not compared, since not all scored them: {left_out}.",
        ]
    return "\n".join(lines) + "\n"


def points(difference: float) -> str:
    """Return a difference of ratios in signed percentage points."""
    return "-" if np.isnan(difference) else f"{100 * difference:+.2f}"


def points_text(interval: Interval | None) -> str:
    """Return an interval of differences in percentage points: "+0.20 to +1.31"."""
    return "-" if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def _images(report: IoUReport) -> ImageScores:
    assert report.images is not None  # load_report refuses reports without image scores
    return report.images


def _aligned(scores: ImageScores, places: list[int], ids: list[str]) -> ImageScores:
    chosen = scores.subset(places)
    return ImageScores(tuple(ids), chosen.truth_sha256, chosen.hits, chosen.truth, chosen.predicted)


def _refuse_other_truth(ours: ImageScores, theirs: ImageScores, other: IoUReport) -> None:
    differ = [
        name for name, one, two in zip(ours.ids, ours.truth_sha256, theirs.truth_sha256, strict=True) if one != two
    ]
    if differ:
        raise DataError(
            f"{other.provenance.model} was scored against other ground truth for {len(differ)} of {len(ours)} "
            f"images, for example {differ[0]}: the scores cannot be compared"
        )


def _score(scores: ImageScores) -> tuple[float, Interval | None, Float64Array, Float64Array]:
    iou = ratio(scores.hits.sum(axis=0), scores.union.sum(axis=0))
    return mean_of_known(iou), miou_interval(scores), iou, scores.miou


def _names(reports: list[IoUReport]) -> list[str]:
    """Return short unique names: the last parts of each model's path that differ."""
    parts = [each.provenance.model.rstrip("/").split("/") for each in reports]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({place})" for place, part in enumerate(parts, start=1)]


def _nulls(values: Float64Array) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
