"""Page of a training run (`report.html`): data, reasons, curves, classes, images, next commands."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.artifact.run_config import load_run_config
from gmtool.artifact.run_record import Choice, RunRecord, read_events, read_record
from gmtool.config import TrainConfig
from gmtool.progress import clock
from gmtool.report.charts import Chart, Line, chart, spark
from gmtool.report.html import css_color, render
from gmtool.report.pictures import Example, panels, picture_uri
from gmtool.report.report import IoUReport

PAGE_NAME = "report.html"
SMALL_PX = 220
LOSSES = {
    "loss": "loss",
    "ce": "cross-entropy",
    "usup": "unlabeled loss",
    "cla": "image class loss",
    "dec": "labeled pair loss",
}


@dataclass(frozen=True)
class RunPictures:
    """Pictures of a run's page."""

    worst: tuple[Example, ...] = ()
    """Validation images with the lowest mIoU."""
    labeled: tuple[Example, ...] = ()
    """Labeled images with their masks."""
    unlabeled: bytes | None = None
    """PNG of unlabeled images with the teacher's masks and what counts; None without."""


def run_html(run_dir: Path, report: IoUReport, pictures: RunPictures) -> str:
    """Return the page of a finished run, without scripts and external files.

    Raises:
        MissingExtraError: Jinja2 is not installed.
        GmtoolError: The run folder cannot be read.
    """
    config, record, events = load_run_config(run_dir), read_record(run_dir), read_events(run_dir)
    train, val = ([event for event in events if event["kind"] == kind] for kind in ("train", "val"))
    classes = report.classes
    return render(
        "run.html.j2",
        run=run_dir,
        report=report,
        record=record,
        recipe=record.recipe or config.method.name,
        limited=report.best is not None and report.best.images is not None,
        facts=_facts(config, record, train),
        data=_data_rows(config, record, report),
        settings=changed_settings(config),
        rounds=any("round" in event for event in val),
        choices=[_choice_table(choice) for choice in record.choices],
        stages=[(stage.name, clock(stage.seconds)) for stage in record.stages],
        charts=run_charts([(run_dir.name, events)]) if train or len(val) > 1 else [],
        has_course=len(val) > 1,
        classes=_class_rows(report, val),
        worst=[_panels(example, report, mistakes=True) for example in pictures.worst],
        labeled=[_panels(example, report, mistakes=False) for example in pictures.labeled],
        unlabeled=None if pictures.unlabeled is None else picture_uri(pictures.unlabeled),
        legend=[(name, css_color(classes, index)) for index, name in enumerate(classes.names)],
        commands=_commands(run_dir, config),
    )


def run_charts(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[Chart]:
    """Return charts of validation mIoU, losses, learning rate and speed; of several runs, each chart has all.

    Args:
        runs: Name and events of each run.
    """
    several = len(runs) > 1
    by_round = all("round" in event for _, events in runs for event in events if event["kind"] == "val")
    losses = {"loss": "loss"} if several else LOSSES
    along = "round" if by_round else "iteration"
    miou = [Line(name, *_series(events, "val", "miou", factor=100, along=along)) for name, events in runs]
    lines = [
        Line(name if several else words, *_series(events, "train", key))
        for name, events in runs
        for key, words in losses.items()
    ]
    rates = [Line(name if several else "", *_series(events, "train", "lr")) for name, events in runs]
    speeds = [Line(name if several else "", *_series(events, "train", "images_per_s")) for name, events in runs]
    charts = (
        chart("validation mIoU", miou, unit=" %", axis=along),
        chart("losses (logarithmic)", lines, log=True),
        chart("learning rate of the encoder", rates),
        chart("images/s", speeds),
    )
    return [each for each in charts if each is not None]


def changed_settings(config: TrainConfig) -> list[tuple[str, str, str]]:
    """Return (name, value, default) of the settings that differ from the defaults, without paths of the data."""
    rows = []
    for section in fields(TrainConfig):
        table = getattr(config, section.name)
        for item in fields(table):
            value, default = getattr(table, item.name), item.default
            if value != default and (section.name, item.name) != ("data", "root"):
                rows.append((f"{section.name}.{item.name}", _text(value), _text(default)))
    return rows


def _facts(config: TrainConfig, record: RunRecord, train: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    speeds = [event["images_per_s"] for event in train if event.get("images_per_s")]
    asked = config.probe.minutes if config.method.name == "probe" else None
    of = "" if asked is None else f" of {clock(60 * asked)} asked for"
    facts = [("time", f"{clock(record.seconds)}{of}" if record.seconds else "")]
    facts.append(("iterations", str(config.optim.iterations) if train else ""))
    facts.append(("images/s", f"{float(np.median(speeds)):.3g}" if speeds else ""))
    facts.append(("memory", _size(record.memory_bytes)))
    facts.append(("GPU memory", _size(record.gpu_bytes)))
    facts.append(("device", f"{config.run.device}, {config.run.precision}"))
    return [(name, text) for name, text in facts if text]


def _data_rows(config: TrainConfig, record: RunRecord, report: IoUReport) -> list[tuple[str, str]]:
    data = config.data
    rows = [
        ("data set", f"{record.kind or data.layout}: {data.root}"),
        ("labeled images", f"{_count(record.labeled)}{_of(data.labeled)}"),
        ("unlabeled images", f"{_count(record.unlabeled)}{_of(data.unlabeled)}"),
        ("validation images", f"{report.num_images} of {report.provenance.split}"),
        ("size of the labeled images", f"{record.image_size} (median)" if record.image_size else ""),
        ("classes", str(len(report.classes))),
        ("seed", str(config.run.seed)),
        ("started", record.started),
        ("versions", ", ".join(record.versions)),
    ]
    return [(name, text) for name, text in rows if text]


def _class_rows(report: IoUReport, val: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each class with its last IoU, the one at the best validation, and its course."""
    value = report.to_dict()
    courses = [event["iou"] for event in val if isinstance(event.get("iou"), list)]
    best = max(val, key=lambda event: event.get("miou") or 0.0, default=None) if report.best else None
    at_best = best.get("iou") if best is not None else None
    return [
        {
            "name": row["name"],
            "color": css_color(report.classes, index),
            "iou": row["iou"],
            "bar": f"{100 * (row['iou'] or 0):.2f}",
            "best": at_best[index] if isinstance(at_best, list) and index < len(at_best) else None,
            "course": spark([course[index] if index < len(course) else None for course in courses]),
            "pixels": row["pixels"],
        }
        for index, row in enumerate(value["classes"])
    ]


def _choice_table(choice: Choice) -> dict[str, Any]:
    """Return a choice with its figures as texts."""
    rows = [
        (each.name, ["-" if figure is None else f"{figure:.4g}" for figure in each.figures], each.taken)
        for each in choice.candidates
    ]
    return {"subject": choice.subject, "rule": choice.rule, "columns": choice.columns, "rows": rows}


def _panels(example: Example, report: IoUReport, *, mistakes: bool) -> dict[str, Any]:
    shown = panels(example, report.classes)
    wanted = shown if mistakes else [panel for panel in shown if panel.title in ("image", "ground truth")]
    miou = None if math.isnan(example.miou) else example.miou
    return {"id": example.id, "miou": miou, "panels": wanted, "small": example.truth.shape[1] < SMALL_PX}


def _commands(run_dir: Path, config: TrainConfig) -> list[tuple[str, str]]:
    run = shlex.quote(str(run_dir))
    commands = [
        (f"gmtool export {run}", "a model for ONNX Runtime, from the best weights"),
        (f"gmtool predict IMAGES --out masks --model {run}", "masks of new images, once it is exported"),
        (f"gmtool evaluate --model {run}", "scores with intervals, confusion matrix, worst images"),
        (f"gmtool runs {shlex.quote(str(run_dir.parent))}", "this run beside others"),
    ]
    if config.method.name != "probe":
        commands.append((f"gmtool train --resume {run} --iterations N", "train longer"))
    return commands


def _series(
    events: Sequence[Mapping[str, Any]], kind: str, key: str, *, factor: float = 1.0, along: str = "iteration"
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]:
    chosen = [event for event in events if event["kind"] == kind]
    values = [math.nan if event.get(key) is None else factor * float(event[key]) for event in chosen]
    return np.array([float(event[along]) for event in chosen]), np.array(values)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else "none" if value is None else str(value)


def _count(number: int | None) -> str:
    return "not known" if number is None else str(number)


def _of(path: Path | None) -> str:
    return "" if path is None else f" of {path}"


def _size(count: int | None) -> str:
    return "" if not count else f"{count / 2**30:.2f} GiB"
