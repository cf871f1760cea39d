"""Scoring: a model on a data set, or a folder of masks against a folder of masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from gmtool.classes import ClassSet
from gmtool.config import MaskValues
from gmtool.datasets import Split
from gmtool.errors import DataError, GmtoolError
from gmtool.images import UInt8Array, read_image
from gmtool.masks import read_mask
from gmtool.metrics import confusion_matrix
from gmtool.report import IoUReport, Provenance
from gmtool.samples import Sample
from gmtool.splits import read_split
from gmtool.truth import read_truth
from gmtool_serving.backend import Backend

Progress = Callable[[Iterable[Sample]], Iterator[Sample]]
"""Passes samples on and shows how far it is."""


def evaluate_model(backend: Backend, split: Split, *, values: MaskValues, progress: Progress) -> IoUReport:
    """Score a model on a split: whole images at their own size. Images that fail are listed and left out.

    Raises:
        DataError: Not one image could be scored.
    """
    classes = backend.spec.classes

    def predict(sample: Sample) -> UInt8Array:
        mask: UInt8Array = backend.predict(read_image(sample.image_path)[None]).mask[0]
        return mask

    provenance = Provenance(
        split=split.name,
        split_sha256=split.sha256,
        model=backend.model,
        model_sha256=backend.model_sha256,
        backend=backend.description,
        precision=backend.spec.precision,
        labeled_sha256=backend.spec.provenance.labeled_sha256,
    )
    return _score(split, classes, predict, provenance, values=values, progress=progress)


def evaluate_masks(
    predictions: Path,
    ground_truth: Path,
    list_path: Path | None,
    *,
    classes: ClassSet,
    values: MaskValues,
    progress: Progress,
) -> IoUReport:
    """Score a folder of masks (class indices) against a folder of ground truth of the same relative names.

    Every ground-truth mask, or every one in the list, counts as asked for: one without a prediction is
    listed as failed.

    Raises:
        DataError: A folder is missing, or not one mask could be scored.
    """
    split = _mask_split(predictions, ground_truth, list_path)

    def predict(sample: Sample) -> UInt8Array:
        if not sample.image_path.is_file():
            raise DataError(f"no prediction {sample.image_path}")
        return read_mask(sample.image_path, classes)

    provenance = Provenance(
        split=split.name,
        split_sha256=split.sha256,
        model=str(predictions),
        model_sha256=None,
        backend="masks on disk",
        precision="not known",
    )
    return _score(split, classes, predict, provenance, values=values, progress=progress)


def _mask_split(predictions: Path, ground_truth: Path, list_path: Path | None) -> Split:
    """Return samples whose "image" is the predicted mask."""
    for folder in (predictions, ground_truth):
        if not folder.is_dir():
            raise DataError(f"folder of masks {folder} does not exist")
    if list_path is None:
        names = [path.relative_to(ground_truth).with_suffix("").as_posix() for path in ground_truth.rglob("*.png")]
        names.sort()
    else:
        # A published list names images with their folder; masks are named after the file
        names = [_name_in(ground_truth, entry.name) for entry in read_split(list_path)]
    if not names:
        raise DataError(f"{ground_truth}: no ground truth (*.png) in it")
    samples = tuple(Sample(name, predictions / f"{name}.png", ground_truth / f"{name}.png") for name in names)
    return Split(str(list_path or ground_truth), samples)


def _name_in(ground_truth: Path, name: str) -> str:
    parts = name.split("/")
    candidates = ["/".join(parts[start:]) for start in range(len(parts))]
    return next((name for name in candidates if (ground_truth / f"{name}.png").is_file()), name)


def _score(
    split: Split,
    classes: ClassSet,
    predict: Callable[[Sample], UInt8Array],
    provenance: Provenance,
    *,
    values: MaskValues,
    progress: Progress,
) -> IoUReport:
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    failed = []
    for sample in progress(split.samples):
        try:
            truth = read_truth(sample, classes, values=values)
            matrix += confusion_matrix(
                truth, predict(sample), num_classes=len(classes), ignore_index=classes.ignore_index
            )
        except GmtoolError as error:
            failed.append(f"{sample.id}: {error}")
    if len(failed) == len(split.samples):
        raise DataError(f"not one of {len(failed)} images could be scored; the first: {failed[0]}")
    return IoUReport(
        confusion=matrix,
        classes=classes,
        num_images=len(split.samples) - len(failed),
        failed=tuple(failed),
        provenance=provenance,
    )
