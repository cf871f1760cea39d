"""A prediction job: masks of all inputs, files of the whole run, and their score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gmtool.config import MaskValues
from gmtool.errors import DataError, UsageError
from gmtool.report.report import IoUReport
from gmtool_serving.backends.base import Backend
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.outputs.formats import FormatName, check_names
from gmtool_serving.pipeline.pipeline import Outcome
from gmtool_serving.pipeline.run import PredictionRun, PredictOptions


@dataclass(frozen=True)
class Scoring:
    """Ground truth that the masks are compared with."""

    ground_truth: Path
    values: MaskValues | None
    """Encoding of the ground truth; None to recognise it."""
    format: FormatName
    """The written format that is scored: one of class indices."""

    @classmethod
    def of(cls, ground_truth: Path, values: MaskValues | None, formats: Sequence[FormatName]) -> Scoring:
        """Return the scoring of the first format that holds class indices.

        Raises:
            UsageError: None of the formats does.
        """
        for name in formats:
            if name in ("voc", "trainids"):
                return cls(ground_truth, values, name)
        raise UsageError("--ground-truth scores class indices: add --format voc or --format trainids")


@dataclass(frozen=True)
class PredictionSummary:
    """Result of a job. Each input is in `manifest.jsonl` of the output folder."""

    out: str
    """Output folder."""
    inputs: int
    ok: int
    """Inputs whose masks were written."""
    failed: int
    skipped: int
    """Inputs whose masks were there already (`resume`)."""
    not_reached: int
    """Inputs that a stopped job did not come to."""
    seconds: float
    ms_per_image: dict[str, float]
    """Milliseconds of each stage."""
    details: dict[str, Any]
    """What `--json` prints, without the score."""
    score: IoUReport | None = None

    @property
    def usable(self) -> int:
        """Inputs that have masks now."""
        return self.ok + self.skipped

    @property
    def images_per_s(self) -> float:
        """Images a second."""
        return (self.ok + self.failed) / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return self.details if self.score is None else self.details | {"score": self.score.to_dict()}


class UnfinishedError(DataError):
    """The masks are written, but a file of the whole run or the score cannot be made."""

    def __init__(self, message: str, summary: PredictionSummary) -> None:
        super().__init__(message)
        self.summary = summary


class Observer:
    """Follows a job; by default it does nothing."""

    def tell(self, line: str) -> None:
        """Take a line about the job: the cluster, the model."""

    def follow(self, run: PredictionRun) -> AbstractContextManager[Callable[[Outcome], None]]:
        """Return a context for the work on the images; what it gives is called with each outcome."""
        del run
        return nullcontext(lambda outcome: None)


def refuse_uris(paths: Sequence[str | None]) -> None:
    """Refuse URIs where nothing reads them.

    Raises:
        UsageError: There is one.
    """
    for path in paths:
        if path is not None and "://" in path:
            raise UsageError(f"{path}: buckets are read with --ray; --ray local needs no cluster")


def predict_job(
    images: Sequence[InputImage],
    out: Path,
    options: PredictOptions,
    open_model: Callable[[], Backend],
    *,
    scoring: Scoring | None = None,
    observer: Observer | None = None,
) -> PredictionSummary:
    """Predict on this machine; see `carry_out`.

    Args:
        images: All inputs of the job.
        out: Output folder; made if its parent exists.
        options: Formats, decoding, batches, workers.
        open_model: Loads the model, after the output folder was opened: while it loads, processes get ready.
        scoring: Ground truth; None for no score.
        observer: Follows the job.
    """
    check_names(options.formats, images)
    with PredictionRun(images, out, options) as run:
        return carry_out(run, open_model(), images, scoring=scoring, observer=observer or Observer())


def carry_out(
    run: PredictionRun,
    backend: Backend,
    images: Sequence[InputImage],
    *,
    scoring: Scoring | None,
    observer: Observer,
) -> PredictionSummary:
    """Run to the end, make the files of the whole run, and score.

    Images that fail are counted, not raised. A job that was stopped ends after the masks.

    Raises:
        ConfigError: The model cannot give what was asked for.
        DataError: The folder cannot be written, or the disk is full.
        UnfinishedError: All masks are written, but a file of the whole run or the score cannot be made.
    """
    observer.tell(f"model {backend.model}, {backend.description}")
    with observer.follow(run) as note:
        for outcome in run.outcomes(backend):
            note(outcome)
    if run.interrupted:
        return _summary(run, backend)
    try:
        run.make_files_of_the_whole(images, backend.spec.classes)
        has_masks = run.tally.ok + run.tally.skipped > 0
        score = _score(run, backend, images, scoring) if scoring is not None and has_masks else None
    except DataError as error:
        raise UnfinishedError(str(error), _summary(run, backend)) from error
    return _summary(run, backend, score)


def _summary(run: PredictionRun, backend: Backend, score: IoUReport | None = None) -> PredictionSummary:
    tally, details = run.tally, run.summary(backend)
    return PredictionSummary(
        out=run.folder.name,
        inputs=tally.inputs,
        ok=tally.ok,
        failed=tally.failed,
        skipped=tally.skipped,
        not_reached=tally.not_reached,
        seconds=tally.seconds,
        ms_per_image=details["ms_per_image"],
        details=details,
        score=score,
    )


def _score(run: PredictionRun, backend: Backend, images: Sequence[InputImage], scoring: Scoring) -> IoUReport:
    """Return the score of the masks that have ground truth."""
    from gmtool.data.splits import format_split
    from gmtool.resources import temporary_dir
    from gmtool_serving.scoring.evaluate import score
    from gmtool_serving.scoring.tasks import masks_task

    # A list holds one name a line: a name with a line break cannot stand in it
    names = [name for name in (str(image.output) for image in images) if name.isprintable()]
    with temporary_dir() as folder:
        listed = folder / "predicted.txt"
        listed.write_text(format_split(names), encoding="utf-8")
        task = masks_task(
            run.folders[scoring.format],
            scoring.ground_truth,
            listed,
            classes=backend.spec.classes,
            values=scoring.values,
            prediction_values="index",
        )
        report = score(task, progress=iter)
    limit = run.options.compute.min_confidence
    if limit is None:
        return report
    said = f"{report.protocol.prediction_values}; pixels below confidence {limit:g} have no class"
    return replace(report, protocol=replace(report.protocol, prediction_values=said))
