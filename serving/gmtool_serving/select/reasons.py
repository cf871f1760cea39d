"""Table of all images of a pool: values of each, and why it was chosen or not."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence

import numpy as np

from gmtool.classes import ClassSet
from gmtool_serving.select.appearance import Float32Array
from gmtool_serving.select.certainty import NEED_LOGITS, Strategy
from gmtool_serving.select.choose import Choice, class_weights
from gmtool_serving.select.measure import Measures

COLUMNS = ("rank", "id", "path", "score", "uncertainty", "distance", "classes", "reason")
NUM_CLASSES = 3
"""Number of classes that are named for an image."""
RARE_WEIGHT = 1.5
"""Weight from which a class is called rare: less than half the mean share."""


def reasons_of_chosen(measures: Measures, choice: Choice, classes: ClassSet, strategy: Strategy) -> dict[int, str]:
    """Return why each chosen image was chosen, by place."""
    if not choice.chosen:
        return {}
    weights = class_weights(measures)
    uncertainty = measures.doubt.sum(axis=1)
    mean = float(uncertainty[measures.is_measured].mean())
    texts = {}
    for place in choice.chosen:
        parts = []
        if strategy in ("mixed", *NEED_LOGITS):
            times = f", {uncertainty[place] / mean:.1f} times the pool's mean" if mean > 0 else ""
            parts.append(f"uncertainty {uncertainty[place]:.3f}{times}")
        if strategy == "mixed":
            parts += _doubtful(measures.doubt[place], weights, classes)
        if strategy in ("mixed", "coreset", "kmeans++"):
            first = "no image to compare with"
            distance = choice.distance[place]
            parts.append(
                first if np.isnan(distance) else f"distance {distance:.2f} to the nearest labeled or chosen image"
            )
        texts[place] = "; ".join(parts) or "drawn at random"
    return texts


def table_of_all(
    measures: Measures,
    choice: Choice,
    classes: ClassSet,
    *,
    labeled: Sequence[int],
    reasons: dict[int, str],
) -> bytes:
    """Return a CSV file, UTF-8, with a line for each image: chosen ones first, by rank, then by falling score."""
    rank = {place: number for number, place in enumerate(choice.chosen, start=1)}
    is_labeled = set(labeled)
    uncertainty = measures.doubt.sum(axis=1)
    by_score = np.argsort(-choice.score, kind="stable").tolist()
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for place in [*choice.chosen, *(place for place in by_score if place not in rank)]:
        image = measures.images[place]
        if place in measures.failures:
            values, reason = ["", "", "", ""], f"failed: {measures.failures[place]}"
        elif not measures.is_measured[place]:
            values, reason = ["", "", "", ""], "labeled" if place in is_labeled else "not drawn"
        else:
            distance = choice.distance[place]
            values = [f"{choice.score[place]:.5f}", f"{uncertainty[place]:.5f}" if uncertainty.any() else ""]
            values += ["" if np.isnan(distance) else f"{distance:.4f}", _shares(measures, place, classes)]
            reason = reasons.get(place) or _why_not(measures, choice, place, is_labeled)
        writer.writerow([rank.get(place, ""), str(image.output), str(image), *values, reason])
    return os.fsencode(buffer.getvalue())


def _why_not(measures: Measures, choice: Choice, place: int, labeled: set[int]) -> str:
    if place in labeled:
        return "labeled"
    if place in choice.duplicate_of:
        return f"near-duplicate of {measures.images[choice.duplicate_of[place]].output}"
    return f"not among the first {len(choice.chosen)}"


def _doubtful(doubt: Float32Array, weights: Float32Array, classes: ClassSet) -> list[str]:
    """Return the text of the classes whose pixels add most to the score; empty if none adds."""
    added = doubt * weights
    places = [int(label) for label in np.argsort(-added, kind="stable")[:NUM_CLASSES] if added[label] > 0]
    names = [f"{classes.names[label]}{' (rare)' if weights[label] >= RARE_WEIGHT else ''}" for label in places]
    return [f"most of it at {', '.join(names)}"] if names else []


def _shares(measures: Measures, place: int, classes: ClassSet) -> str:
    shares = measures.shares[place]
    largest = [int(label) for label in np.argsort(-shares, kind="stable")[:NUM_CLASSES] if shares[label] > 0]
    return "; ".join(f"{classes.names[label]} {100 * shares[label]:.1f} %" for label in largest)
