"""Score predictions against ground truth: the loop over images, and the examples of a report."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np

from gmtool.classes import ClassSet
from gmtool.config import MaskValues
from gmtool.console import remark
from gmtool.data.label_statistics import IN_EVALUATION, doubt_ignored
from gmtool.errors import DataError, GmtoolError
from gmtool.files import sha256_of_lines
from gmtool.images import UInt8Array
from gmtool.masks.encodings import MEANINGS
from gmtool.report.boundary import boundary_counts
from gmtool.report.image_scores import ImageScores, ScoreCollector, sha256_of_labels
from gmtool.report.metrics import confusion_matrix
from gmtool.report.pictures import Example
from gmtool.report.report import IoUReport, Protocol, Provenance

ScoreProgress = Callable[[Iterable[str]], Iterator[str]]
"""Passes image ids on, and shows a progress bar."""

WORKERS = 2
AHEAD = 6
"""Maximum of images that are decoded ahead; bounds memory."""
NUM_WORST = 5
NUM_MEDIAN = 3


@dataclass(frozen=True)
class Task:
    """Images to score, with functions that load and predict them."""

    ids: tuple[str, ...]
    classes: ClassSet
    load: Callable[[str], tuple[UInt8Array, UInt8Array]]
    """Returns the input of `predict` and the ground truth, (H, W) uint8, of an id. Called in threads; may raise
    GmtoolError."""
    predict: Callable[[UInt8Array], UInt8Array]
    """Returns the mask, (H, W) uint8, of the input that `load` returned. May raise GmtoolError."""
    picture: Callable[[str], UInt8Array | None] | None
    """Returns the image of an id for the report, RGB, (H, W, 3) uint8, or None; None if there are no images."""
    provenance: Provenance
    protocol: Protocol
    may_lack_class: bool = False
    """Accept the ignore index in predictions as "no class"; else such a prediction fails."""
    surplus: tuple[str, ...] = ()
    """Predictions without ground truth: reported as left out."""


@dataclass(frozen=True)
class _Loaded:
    """Loaded input and ground truth of an image, or the error."""

    id: str
    source: UInt8Array | None = None
    truth: UInt8Array | None = None
    error: str = ""


def score(task: Task, *, progress: ScoreProgress, with_boundary: bool = False) -> IoUReport:
    """Compare every prediction with its ground truth. Failed images are listed and count in no score.

    Images whose ground truth ignores every pixel are left out and listed too.

    Args:
        task: Images to score.
        progress: Progress bar over the images.
        with_boundary: Also compute boundary IoU.

    Raises:
        DataError: No image could be scored.
    """
    classes = task.classes
    kind = {"num_classes": len(classes), "ignore_index": classes.ignore_index}
    matrix = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    boundary = np.zeros((2, len(classes)), dtype=np.int64)
    images = ScoreCollector(len(classes))
    failed, left_out, ignored_pixels = [], [], 0
    # Add up the confusion matrices of all images
    for loaded in _load_ahead(task, progress):
        try:
            source, truth = _loaded(loaded)
            counted = int(np.count_nonzero(truth != classes.ignore_index))
            if not counted:
                left_out.append(f"{loaded.id}: its ground truth ignores every pixel")
                continue
            prediction = task.predict(source)
            counts = confusion_matrix(truth, prediction, **kind, allow_no_class=task.may_lack_class)
            if with_boundary:
                boundary += boundary_counts(truth, prediction, **kind)
        except GmtoolError as error:
            failed.append(f"{loaded.id}: {error}")
            continue
        matrix[:, : counts.shape[1]] += counts
        ignored_pixels += truth.size - counted
        images.add(loaded.id, sha256_of_labels(truth), counts)
    # Warn of ground truth that looks misread
    scores = images.scores()
    values: MaskValues = "raw" if MEANINGS["raw"] in (task.protocol.truth_values or "") else "index"
    pixels = matrix.sum(axis=1)
    doubt = doubt_ignored(pixels, ignored_pixels, classes=classes, values=values, option=IN_EVALUATION)
    if doubt is not None:
        remark(f"warning: ground truth: {doubt}")
    # Refuse an empty result
    if not task.ids:
        raise DataError(f"{task.provenance.split}: no image to score")
    if not len(scores):
        raise DataError(f"none of {len(task.ids)} images could be scored; the first: {(failed or left_out)[0]}")
    # Report
    left_out += [f"{name}: no ground truth" for name in task.surplus]
    versions = tuple(f"{package} {version(package)}" for package in ("numpy", "pillow"))
    return IoUReport(
        confusion=matrix,
        classes=classes,
        num_images=len(scores),
        failed=tuple(failed),
        provenance=replace(
            task.provenance, truth_sha256=sha256_of_lines(list(scores.truth_sha256)), versions=versions
        ),
        protocol=task.protocol,
        left_out=tuple(left_out),
        ignored_pixels=ignored_pixels,
        images=scores,
        boundary=boundary if with_boundary else None,
    )


def find_examples(task: Task, report: IoUReport) -> list[Example]:
    """Return the images with the worst and the median mIoU as examples; they are predicted again."""
    assert report.images is not None
    return [_example(task, kind, place, report.images) for kind, place in choose_examples(report.images)]


def choose_examples(images: ImageScores) -> list[tuple[str, int]]:
    """Return ("worst" or "median", index) of the example images, each once, the worst first."""
    order = images.miou.argsort(kind="stable").tolist()
    worst = order[:NUM_WORST]
    start = max(0, (len(order) - NUM_MEDIAN) // 2)
    median = [place for place in order[start : start + NUM_MEDIAN] if place not in worst]
    return [("worst", place) for place in worst] + [("median", place) for place in median]


def _example(task: Task, kind: str, place: int, images: ImageScores) -> Example:
    image_id = images.ids[place]
    source, truth = task.load(image_id)
    picture = None if task.picture is None else task.picture(image_id)
    return Example(image_id, kind, float(images.miou[place]), picture, truth, task.predict(source))


def _load_ahead(task: Task, progress: ScoreProgress) -> Iterator[_Loaded]:
    """Load in threads (decoding releases the interpreter lock), in order, at most `AHEAD` images ahead."""

    def load(image_id: str) -> _Loaded:
        try:
            return _Loaded(image_id, *task.load(image_id))
        except GmtoolError as error:
            return _Loaded(image_id, error=str(error))

    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[Future[_Loaded]] = deque(pool.submit(load, name) for name in task.ids[:AHEAD])
        upcoming = iter(task.ids[AHEAD:])
        try:
            for _ in progress(task.ids):
                yield waiting.popleft().result()
                waiting.extend(pool.submit(load, name) for name in _next_of(upcoming))
        finally:
            for future in waiting:
                future.cancel()


def _next_of(upcoming: Iterator[str]) -> Sequence[str]:
    following = next(upcoming, None)
    return () if following is None else (following,)


def _loaded(loaded: _Loaded) -> tuple[UInt8Array, UInt8Array]:
    if loaded.source is None or loaded.truth is None:
        raise DataError(loaded.error)
    return loaded.source, loaded.truth
