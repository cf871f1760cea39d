"""Cityscapes scores in the JSON format of cityscapesScripts."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmtool.classes import ClassSet, load_classes
from gmtool.errors import UsageError
from gmtool.report.metrics import Int64Array, iou_per_class
from gmtool.report.report import IoUReport

LABELS = (
    ("unlabeled", "void"), ("ego vehicle", "void"), ("rectification border", "void"), ("out of roi", "void"),
    ("static", "void"), ("dynamic", "void"), ("ground", "void"), ("road", "flat"), ("sidewalk", "flat"),
    ("parking", "flat"), ("rail track", "flat"), ("building", "construction"), ("wall", "construction"),
    ("fence", "construction"), ("guard rail", "construction"), ("bridge", "construction"),
    ("tunnel", "construction"), ("pole", "object"), ("polegroup", "object"), ("traffic light", "object"),
    ("traffic sign", "object"), ("vegetation", "nature"), ("terrain", "nature"), ("sky", "sky"),
    ("person", "human"), ("rider", "human"), ("car", "vehicle"), ("truck", "vehicle"), ("bus", "vehicle"),
    ("caravan", "vehicle"), ("trailer", "vehicle"), ("train", "vehicle"), ("motorcycle", "vehicle"),
    ("bicycle", "vehicle"),
)  # fmt: skip
"""Name and category of each label id (cityscapesScripts, helpers/labels.py)."""


def official_dict(report: IoUReport) -> dict[str, Any]:
    """Return the keys of `resultPixelLevelSemanticLabeling.json`.

    Instance scores are null, since they need instanceIds. Labels that are not evaluated have null scores and
    priors, since class indices do not distinguish them; their pixels count in the priors of the others, as in the
    script. Pixels predicted without a class count as label 0, "unlabeled".

    Raises:
        UsageError: Other classes than the 19 of Cityscapes, or ignored pixels not counted.
    """
    classes = load_classes("cityscapes")
    if report.classes.names != classes.names or report.ignored_pixels is None:
        raise UsageError("--official-json needs the 19 classes of Cityscapes")
    # Confusion matrix by raw id
    ids = list(classes.raw_ids)
    matrix = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
    matrix[np.ix_(ids, ids)] = report.confusion[:, : len(ids)]
    matrix[ids, 0] += report.no_class
    all_pixels = int(matrix.sum()) + report.ignored_pixels
    # Scores of classes and categories
    scores = dict(zip(ids, iou_per_class(report.confusion).tolist(), strict=True))
    class_scores = {name: _null_if_nan(scores.get(place, np.nan)) for place, (name, _) in enumerate(LABELS)}
    category_scores = {category: _category_iou(matrix, category, ids) for _, category in LABELS}
    return {
        "confMatrix": matrix.tolist(),
        "priors": {
            name: float(matrix[place].sum()) / all_pixels if place in ids else None
            for place, (name, _) in enumerate(LABELS)
        },
        "labels": {name: place for place, (name, _) in enumerate(LABELS)},
        "classScores": class_scores,
        "classInstScores": dict.fromkeys(class_scores),
        "categoryScores": category_scores,
        "categoryInstScores": dict.fromkeys(category_scores),
        "averageScoreClasses": _average(class_scores),
        "averageScoreInstClasses": None,
        "averageScoreCategories": _average(category_scores),
        "averageScoreInstCategories": None,
    }


def require_cityscapes(classes: ClassSet) -> None:
    """Check for the 19 classes of Cityscapes.

    Raises:
        UsageError: Other classes.
    """
    if classes.names != load_classes("cityscapes").names:
        raise UsageError("--official-json needs the 19 classes of Cityscapes")


def _category_iou(matrix: Int64Array, category: str, ids: list[int]) -> float | None:
    """Return the IoU of a category; confusions between its classes count as correct."""
    inside = [place for place in ids if LABELS[place][1] == category]
    hits = int(matrix[np.ix_(inside, inside)].sum())
    either = int(matrix[inside].sum()) + int(matrix[:, inside].sum()) - hits
    return hits / either if either else None


def _average(scores: dict[str, float | None]) -> float | None:
    known = [score for score in scores.values() if score is not None]
    total = 0.0
    for score in known:  # added in order like the script: sum() rounds differently
        total += score
    return total / len(known) if known else None


def _null_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else value
