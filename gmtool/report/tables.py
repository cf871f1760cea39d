"""Report as Markdown, and as CSV files of classes and images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gmtool import __version__
from gmtool.errors import MessageKinds
from gmtool.escaping import csv_text, markdown_text
from gmtool.files import write_atomically
from gmtool.report.image_scores import Interval
from gmtool.report.report import IoUReport, percent

NUM_WORST = 10
"""Number of worst images in the Markdown report."""


def save_report(report: IoUReport, folder: Path) -> None:
    """Write `report.json` and `report.md` into an existing folder; with image scores, also `classes.csv` and
    `images.csv`.
    """
    report.save_json(folder)
    write_atomically(folder / "report.md", to_markdown(report))
    if report.images is not None:
        write_atomically(folder / "classes.csv", classes_csv(report))
        write_atomically(folder / "images.csv", images_csv(report))


def to_markdown(report: IoUReport) -> str:
    """Return a report as Markdown: headline, one row a class, worst images, provenance."""
    value, origin = report.to_dict(), report.provenance
    lines = [
        f"# mIoU {percent(report.miou)} % on {markdown_text(origin.split)}",
        "",
        _headline(report, value),
        *_best_lines(report),
        "",
        *_class_table(value),
        *_image_lines(report),
        "",
        *provenance_lines(report),
    ]
    for title, kinds in (("Failed", failed_kinds(report)), ("Left out", left_out_kinds(report))):
        if kinds.lines():
            lines += ["", f"## {title}", "", *(f"- {markdown_text(line)}" for line in kinds.lines())]
        if kinds.is_cut:
            lines += ["", "report.json has all of them."]
    return "\n".join(lines) + "\n"


def failed_kinds(report: IoUReport) -> MessageKinds:
    """Return the reasons of failed images, one line a kind."""
    return _kinds(report.failed)


def left_out_kinds(report: IoUReport) -> MessageKinds:
    """Return the reasons of images without pixels to score, one line a kind."""
    return _kinds(report.left_out)


def classes_csv(report: IoUReport) -> str:
    """Return CSV with one row a class: IoU, accuracy and so on in [0, 1] (empty for absent classes); pixels."""
    rows = report.to_dict()["classes"]
    columns = [key for key in rows[0] if key != "boundary_pixels"]
    return _csv(columns, [[row[column] for column in columns] for row in rows])


def images_csv(report: IoUReport) -> str:
    """Return CSV with one row an image: id, mIoU, pixel accuracy, counted pixels, and IoU by class (empty for a
    class in neither map).
    """
    images = report.images
    assert images is not None
    union = images.union
    rows = [
        [image_id, float(images.miou[place]), float(images.accuracy[place]), int(images.truth[place].sum())]
        + [
            float(images.hits[place, index] / union[place, index]) if union[place, index] else None
            for index in range(len(report.classes))
        ]
        for place, image_id in enumerate(images.ids)
    ]
    return _csv(["id", "miou", "pixel_accuracy", "pixels", *report.classes.names], rows)


def interval_text(interval: Interval | None) -> str:
    """Return an interval of ratios as per cent: "71.20 to 75.91"."""
    return "-" if interval is None else f"{percent(interval.low)} to {percent(interval.high)}"


def provenance_lines(report: IoUReport) -> list[str]:
    """Return provenance and protocol as a Markdown list."""
    origin, protocol = report.provenance, report.protocol
    return [
        f"- model: {markdown_text(origin.model)}, sha256 `{origin.model_sha256 or 'not known'}`",
        f"- computed by {markdown_text(origin.backend)}, {origin.precision}",
        f"- labeled images: sha256 of their names `{origin.labeled_sha256 or 'not known'}`",
        f"- split: {markdown_text(origin.split)}, sha256 of the image names `{origin.split_sha256}`",
        f"- ground truth: {protocol.truth_values}; sha256 `{origin.truth_sha256 or 'not known'}`",
        f"- prediction: {protocol.prediction_values}",
        f"- protocol: {protocol.resolution}, scales {list(protocol.scales)}, "
        f"flip {'on' if protocol.flip else 'off'}, label {report.classes.ignore_index} ignored, "
        f"mean {protocol.mean}; a class in neither map is shown as - and not in the mean",
        f"- {', '.join([f'gmtool {__version__}', *origin.versions])}",
    ]


def _headline(report: IoUReport, value: dict[str, Any]) -> str:
    interval = report.interval
    parts = []
    if interval is not None:
        parts.append(
            f"95 % interval {interval_text(interval)} (bootstrap over images, {interval.resamples} resamples, "
            f"seed {interval.seed})."
        )
    counts = f"{report.num_images} images scored, {len(report.failed)} failed"
    counts += f", {len(report.left_out)} left out" if report.left_out else ""
    accuracy = f"pixel accuracy {percent(value['pixel_accuracy'])} %, mean accuracy "
    parts.append(f"{counts}; {accuracy}{percent(value['mean_accuracy'])} %.")
    if report.boundary is not None:
        parts.append(f"Boundary mIoU {percent(value['boundary_miou'])} %.")
    if report.failed or report.left_out:
        parts.append("Failed and left-out images are in no figure.")
    if missed := int(report.no_class.sum()):
        parts.append(f"{missed} counted pixels were given no class and count as missed.")
    return "\n".join(parts)


def _best_lines(report: IoUReport) -> list[str]:
    if report.best is None:
        return []
    best = report.best
    line = f"Last weights; the best of this run: {percent(best.miou)} % at iteration {best.iteration}"
    those = "these images" if best.images is None else f"{best.images} of these images"
    return ["", f"{line}, chosen on {those}, so it is optimistic."]


def _class_table(value: dict[str, Any]) -> list[str]:
    columns = {"iou": "IoU %", "accuracy": "accuracy %", "precision": "precision %"}
    if "boundary_miou" in value:
        columns["boundary_iou"] = "boundary IoU %"
    return [
        f"| class | {' | '.join(columns.values())} | pixels |",
        f"|---|{'---:|' * (len(columns) + 1)}",
        *(
            f"| {name} | {' | '.join(percent(row[key]) for key in columns)} | {row['pixels']} |"
            for row in value["classes"]
            for name in (markdown_text(row["name"]),)
        ),
    ]


def _image_lines(report: IoUReport) -> list[str]:
    if report.images is None or not len(report.images):
        return []
    miou = report.images.miou
    worst = miou.argsort(kind="stable")[:NUM_WORST]
    shown = ", ".join(f"{markdown_text(report.images.ids[place])} {percent(miou[place], 1)}" for place in worst)
    return ["", f"Worst images by their own mIoU, %: {shown}."]


def _kinds(messages: Sequence[str]) -> MessageKinds:
    """Group messages that begin with the id of their image."""
    return MessageKinds((message.partition(": ")[0], message) for message in messages)


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in [header, *rows]:
        writer.writerow([csv_text(value) if isinstance(value, str) else value for value in row])
    return buffer.getvalue()
