"""End of a run: report of the last weights, record, page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch

from gmtool.artifact.run_record import read_record, save_record
from gmtool.console import remark
from gmtool.files import write_atomically
from gmtool.nn.checkpoint import read_checkpoint
from gmtool.report.report import BestScore, IoUReport, Protocol, Provenance, percent
from gmtool.report.run_page import PAGE_NAME, RunPictures, run_html
from gmtool.report.tables import save_report
from gmtool_training.loop.fit import FitResult
from gmtool_training.loop.prepare import RunContext
from gmtool_training.pictures.pairs import PICTURE_NAME as PAIRS_NAME
from gmtool_training.watch.examples import labeled_examples
from gmtool_training.watch.record import ended
from gmtool_training.watch.stages import late_text


@dataclass(frozen=True)
class RunResult:
    """Folder, report and duration of a finished run."""

    run_dir: Path
    report: IoUReport
    """Scores of the last weights."""
    seconds: float
    """Wall-clock time of the training loop with validations, in seconds."""

    late: str = ""
    """What the run took instead of the time asked for, and why; empty if it kept to it."""

    @property
    def best_miou(self) -> float | None:
        """Validation mIoU of the best weights in [0, 1]; None if no pixel was scored."""
        if self.report.best is not None:
            return self.report.best.miou
        return None if math.isnan(self.report.miou) else self.report.miou

    def __fspath__(self) -> str:
        """Return the run folder: the result is taken wherever its path is."""
        return str(self.run_dir)


def finish(run: RunContext, result: FitResult, seconds: float, *, earlier_s: float = 0.0) -> RunResult:
    """Write report, record and page of a run; return its result."""
    report, record = _report(run, result), ended(read_record(run.run_dir), seconds=earlier_s + seconds)
    if run.machine.is_first:
        save_report(report, run.run_dir)
        save_record(run.run_dir, record)
        _write_page(run, report, result)
        _summarize(run, report, seconds=record.seconds)
    late = late_text(record, run.config.probe.minutes, on_processor=run.machine.device.type == "cpu")
    return RunResult(run.run_dir, report, seconds, late)


def _write_page(run: RunContext, report: IoUReport, result: FitResult) -> None:
    sheet = run.run_dir / PAIRS_NAME
    pictures = RunPictures(
        worst=result.worst,
        labeled=labeled_examples(run.data.labeled, run.classes, run.readers.labeled),
        unlabeled=sheet.read_bytes() if sheet.is_file() else None,
    )
    write_atomically(run.run_dir / PAGE_NAME, run_html(run.run_dir, report, pictures))


def _summarize(run: RunContext, report: IoUReport, *, seconds: float) -> None:
    """Give the experiment tracker the final figures, and the hashes by which the weights are known again."""
    value = report.to_dict()
    figures = {"miou": value["miou"], "pixel_accuracy": value["pixel_accuracy"], "seconds": seconds}
    figures |= {f"IoU/{row['name']}": row["iou"] for row in value["classes"]}
    if report.best is not None:
        figures["best_miou"] = report.best.miou
    checkpoints = {name: read_checkpoint(run.run_dir, name) for name in ("last", "best")}
    texts = {f"{name}_weights_sha256": each.sha256 for name, each in checkpoints.items()}
    texts |= {"run_folder": str(run.run_dir), "report": str(run.run_dir / PAGE_NAME)}
    known = {f"final/{name}": figure for name, figure in figures.items() if figure is not None}
    run.tracker.summarize(known, texts)


def _report(run: RunContext, result: FitResult) -> IoUReport:
    progress, data = result.progress, run.data
    checkpoint = run.machine.broadcast(read_checkpoint(run.run_dir, "last") if run.machine.is_first else None)
    assert checkpoint is not None
    best = None  # the probe has one checkpoint: nothing is chosen on the validation images
    if run.config.method.name != "probe":
        best = BestScore(progress.best_miou, progress.best_iteration, result.images)
        remark(
            f"last mIoU {percent(checkpoint.miou)} %, best {percent(progress.best_miou)} % at iteration "
            f"{progress.best_iteration} (chosen on the validation set, so it flatters)"
        )
    return IoUReport(
        confusion=result.last,
        classes=run.classes,
        num_images=len(data.val.samples),
        failed=(),
        provenance=Provenance(
            split=data.val.name,
            split_sha256=data.val.sha256,
            model=str(run.run_dir),
            model_sha256=checkpoint.sha256,
            backend=f"torch {torch.__version__} {run.config.run.device}",
            precision=run.config.run.precision,
            labeled_sha256=data.labeled.sha256,
            truth_sha256=result.truth_sha256,
            versions=(f"torch {torch.__version__}", f"numpy {np.__version__}", f"Pillow {PIL.__version__}"),
        ),
        protocol=Protocol(truth_values=_truth_values(run)),
        best=best,
    )


def _truth_values(run: RunContext) -> str:
    """Return how the masks of the validation images are read."""
    if run.config.data.layout == "coco":
        return "COCO annotations, matched by category name"
    meanings = {"index": "class indices", "raw": "raw ids of the class set", "color": "colors of the class set"}
    values = run.config.data.mask_values
    return f"{meanings[values]} (data.mask_values={values})"
