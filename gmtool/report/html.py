"""Report or comparison as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gmtool import __version__
from gmtool.classes import ClassSet
from gmtool.errors import needs_extra
from gmtool.escaping import printable
from gmtool.report.comparison import Comparison, points, points_text, verdict
from gmtool.report.metrics import Float64Array, ratio
from gmtool.report.pictures import Example, heat_map, panels
from gmtool.report.report import IoUReport, percent
from gmtool.report.tables import failed_kinds, interval_text, left_out_kinds

TEMPLATE_DIR = Path(__file__).parent / "templates"
MAX_MATRIX_CLASSES = 32
"""Largest number of classes of a confusion matrix with numbers; with more it is a picture."""
NUM_CONFUSIONS = 8
NUM_BINS = 20
"""Number of bars in the histogram of the images' mIoU."""
SMALL_PX = 220
"""Width in pixels below which pictures are scaled without blur."""


def report_html(report: IoUReport, examples: Sequence[Example] = ()) -> str:
    """Return a report as an HTML page with embedded pictures, without scripts and external files.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    value = report.to_dict()
    shares = _shares(report)
    return render(
        "report.html.j2",
        report=report,
        value=value,
        interval=report.interval,
        interval_text=interval_text(report.interval),
        classes=_class_rows(report, value),
        columns=_columns(report),
        matrix=_matrix_rows(report, shares) if len(report.classes) <= MAX_MATRIX_CLASSES else None,
        matrix_picture=heat_map(shares),
        confusions=_confusions(report, shares),
        histogram=_histogram(report),
        failed=failed_kinds(report),
        left_out=left_out_kinds(report),
        examples=[_example(example, report) for example in examples],
        provenance=_provenance(report),
    )


def comparison_html(comparison: Comparison) -> str:
    """Return a comparison as an HTML page like `report_html`."""
    first, others = comparison.results[0], comparison.results[1:]
    span = _span(comparison)
    pairs = [
        {
            "name": other.name,
            "points": points(difference.miou),
            "interval": points_text(difference.interval),
            "verdict": verdict(difference),
            "better": difference.better,
            "low": _place(difference.interval.low if difference.interval else difference.miou, span),
            "high": _place(difference.interval.high if difference.interval else difference.miou, span),
            "middle": _place(difference.miou, span),
            "images": [
                {
                    "id": name,
                    "ours": percent(ours, 1),
                    "theirs": percent(theirs, 1),
                    "points": points(ours - theirs),
                }
                for name, ours, theirs in comparison.changed_images(place)
            ],
        }
        for place, (other, difference) in enumerate(zip(others, comparison.differences, strict=True), start=1)
    ]
    return render(
        "comparison.html.j2",
        comparison=comparison,
        first=first,
        pairs=pairs,
        span=f"{100 * span:.1f}",
        results=[(result, interval_text(result.interval)) for result in comparison.results],
        classes=_compared_classes(comparison),
    )


def render(template: str, **context: Any) -> str:
    """Return a page from a template; control characters of texts are escaped."""
    with needs_extra("serve", "writing an HTML report"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_DIR),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "pixels": _pixels}
    return environment.get_template(template).render(version=__version__, **context)


def _columns(report: IoUReport) -> list[tuple[str, str]]:
    columns = [("accuracy", "accuracy"), ("precision", "precision")]
    return [*columns, ("boundary_iou", "boundary IoU")] if report.boundary is not None else columns


def _class_rows(report: IoUReport, value: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        row | {"color": css_color(report.classes, index), "bar": f"{100 * (row['iou'] or 0):.2f}"}
        for index, row in enumerate(value["classes"])
    ]


def _shares(report: IoUReport) -> Float64Array:
    """Return the confusion matrix as shares of each true class; NaN in rows of absent classes."""
    return ratio(
        report.confusion, np.broadcast_to(report.confusion.sum(axis=1, keepdims=True), report.confusion.shape)
    )


def _matrix_rows(report: IoUReport, shares: Float64Array) -> dict[str, Any]:
    has_no_class = bool(report.no_class.any())
    width = len(report.classes) + has_no_class
    columns = [*report.classes.names, "no class"][:width]
    rows = []
    for index, name in enumerate(report.classes.names):
        cells = [
            {
                "share": f"{share:.3f}",
                "text": _cell(share),
                "strong": share > 0.5,
                "right": column == index,
                "title": f"{name} taken for {columns[column]}: {report.confusion[index, column]} pixels",
            }
            for column, share in enumerate(shares[index, :width])
        ]
        rows.append({"name": name, "cells": cells, "color": css_color(report.classes, index)})
    return {"columns": columns, "rows": rows}


def _cell(share: float) -> str:
    """Return a share as whole per cent; a dot below 0.5 %, empty for zero."""
    if np.isnan(share) or share == 0:
        return ""
    return f"{100 * share:.0f}" if share >= 0.005 else "·"


def _confusions(report: IoUReport, shares: Float64Array) -> list[dict[str, Any]]:
    """Return the largest confusions, as shares of the true class."""
    size = len(report.classes)
    wrong = np.nan_to_num(shares[:, :size]) * (1 - np.eye(size))
    order = wrong.ravel().argsort(kind="stable")[::-1][:NUM_CONFUSIONS]
    names = report.classes.names
    return [
        {
            "truth": names[place // size],
            "taken": names[place % size],
            "share": percent(wrong.flat[place], 1),
            "pixels": int(report.confusion[place // size, place % size]),
        }
        for place in order
        if wrong.flat[place] > 0
    ]


def _histogram(report: IoUReport) -> dict[str, Any] | None:
    if report.images is None or len(report.images) < 2:
        return None
    miou = report.images.miou
    counts, _ = np.histogram(miou, bins=NUM_BINS, range=(0, 1))
    return {
        "bars": [(index, int(count), f"{40 * count / counts.max():.2f}") for index, count in enumerate(counts)],
        "median": float(np.median(miou)),
        "low": float(miou.min()),
        "high": float(miou.max()),
    }


def _example(example: Example, report: IoUReport) -> dict[str, Any]:
    images, classes = report.images, report.classes
    assert images is not None
    place = images.ids.index(example.id)
    union = images.union[place]
    present = np.flatnonzero(union)
    return {
        "id": example.id,
        "kind": example.kind,
        "miou": example.miou,
        "panels": panels(example, classes),
        "small": example.truth.shape[1] < SMALL_PX,
        "legend": [
            (classes.names[index], css_color(classes, index), float(images.hits[place, index] / union[index]))
            for index in sorted(map(int, present), key=lambda index: -images.truth[place, index])
        ],
    }


def _provenance(report: IoUReport) -> list[tuple[str, str, bool]]:
    """Return rows of (name, value, whether the value is a hash or path)."""
    origin, protocol = report.provenance, report.protocol
    flip = "with mirror images" if protocol.flip else "no flip"
    scales = ", ".join(f"{scale:g}" for scale in protocol.scales)
    rows = [
        ("model", origin.model, True),
        ("model sha256", origin.model_sha256 or "not known", True),
        ("computed by", f"{origin.backend}, {origin.precision}", False),
        ("images", f"{report.num_images} of {origin.split}", False),
        ("sha256 of their names", origin.split_sha256, True),
        ("sha256 of the ground truth", origin.truth_sha256 or "not known", True),
        ("sha256 of the labeled images' names", origin.labeled_sha256 or "not known", True),
        ("ground truth", protocol.truth_values, False),
        ("prediction", protocol.prediction_values, False),
        ("looked at", f"{protocol.resolution}; scales {scales}; {flip}", False),
        (
            "ignored",
            f"label {report.classes.ignore_index} of the ground truth, {_pixels(report.ignored_pixels)} pixels",
            False,
        ),
        ("mean", protocol.mean, False),
        ("versions", ", ".join([f"gmtool {__version__}", *origin.versions]), False),
    ]
    if report.interval is not None:
        drawn = (
            f"percentile bootstrap over images, {report.interval.resamples} resamples, seed {report.interval.seed}"
        )
        rows.insert(-1, ("interval", drawn, False))
    return rows


def _compared_classes(comparison: Comparison) -> list[dict[str, Any]]:
    """Return each class with the IoU of every result, and the difference to the second as a bar."""
    iou = comparison.differences[0].iou
    largest = float(np.nanmax(np.abs(iou), initial=0.01, where=~np.isnan(iou)))
    return [
        {
            "name": name,
            "iou": [percent(result.iou[index]) for result in comparison.results],
            "points": points(float(iou[index])),
            "bar": f"{0 if np.isnan(iou[index]) else 50 * abs(iou[index]) / largest:.2f}",
            "gain": bool(iou[index] >= 0),
        }
        for index, name in enumerate(comparison.classes)
    ]


def _span(comparison: Comparison) -> float:
    """Return half the width of the axis of differences."""
    ends = [0.01]
    for difference in comparison.differences:
        interval = difference.interval
        ends += [abs(difference.miou)] if interval is None else [abs(interval.low), abs(interval.high)]
    return 1.15 * max(ends)


def _place(value: float, span: float) -> str:
    """Return the position of a difference on an axis from -span to span, in per cent of its length."""
    return f"{50 + 50 * value / span:.2f}"


def css_color(classes: ClassSet, index: int) -> str:
    """Return the colour of a class as CSS."""
    red, green, blue = classes.palette[index]
    return f"rgb({red} {green} {blue})"


def _pixels(count: int | None) -> str:
    """Return a short number of pixels: 431, 12.4 k, 3.1 M."""
    if count is None:
        return "an unknown number of"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return str(count)
