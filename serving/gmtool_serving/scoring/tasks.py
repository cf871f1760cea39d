"""Scoring tasks: a model on a data set; masks against a folder of ground truth or a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath

from gmtool.classes import ClassSet
from gmtool.config import MaskValues
from gmtool.data.datasets import Split
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.data.splits import read_split
from gmtool.errors import DataError
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.files import sha256_of_lines
from gmtool.folders import below
from gmtool.images import UInt8Array, read_image
from gmtool.masks.encodings import MEANINGS
from gmtool.masks.sources import MaskSource, image_key, open_masks
from gmtool.report.report import Protocol, Provenance
from gmtool_serving.backends.base import Backend
from gmtool_serving.backends.multi_view import Averaging, check_averaging, predict_mask
from gmtool_serving.scoring.evaluate import Task

PREDICTION_OPTION = "--prediction-values"
TRUTH_OPTION = "--mask-values"


def model_task(backend: Backend, split: Split, *, values: MaskValues, averaging: Averaging | None = None) -> Task:
    """Return the task of scoring a model on a split of a data set.

    Args:
        backend: Loaded model.
        split: Images with ground truth.
        values: Encoding of the ground-truth masks.
        averaging: Test-time averaging; None for one pass over the whole image.

    Raises:
        ConfigError: Averaging needs logits, and the model has none.
    """
    averaging = averaging or Averaging()
    check_averaging(backend, averaging)
    classes, samples = backend.spec.classes, _by_id(split)

    def load(image_id: str) -> tuple[UInt8Array, UInt8Array]:
        image = samples[image_id].read_image()
        return image, read_truth(samples[image_id], classes, values=values, size=image.shape[:2])

    provenance = Provenance(
        split=split.name,
        split_sha256=split.sha256,
        model=backend.model,
        model_sha256=backend.model_sha256,
        backend=backend.description,
        precision=backend.spec.precision,
        labeled_sha256=backend.spec.provenance.labeled_sha256,
    )
    return Task(
        ids=tuple(samples),
        classes=classes,
        load=load,
        predict=lambda image: predict_mask(backend, image, averaging),
        picture=lambda image_id: samples[image_id].read_image(),
        provenance=provenance,
        protocol=replace(averaging.protocol(), truth_values=MEANINGS[values]),
    )


def folder_task(
    backend: Backend,
    images: Path,
    ground_truth: Path,
    list_path: Path | None,
    *,
    values: MaskValues | None = None,
    averaging: Averaging | None = None,
) -> Task:
    """Return the task of scoring a model on a folder of images against a folder of masks of the same names.

    Args:
        backend: Loaded model.
        images: Folder of the images.
        ground_truth: Folder of the masks, of the model's classes.
        list_path: List of the images to score; None for all with a mask.
        values: Encoding of the masks; None to detect it.
        averaging: Test-time averaging; None for one pass over the whole image.

    Raises:
        ConfigError: Averaging needs logits, and the model has none.
        DataError: A folder is missing, or the encoding of the masks is ambiguous.
    """
    averaging = averaging or Averaging()
    check_averaging(backend, averaging)
    classes = backend.spec.classes
    truth, pictures = open_masks(ground_truth, classes, values, option=TRUTH_OPTION), _pictures(images)
    names = [entry.name for entry in read_split(list_path)] if list_path else list(truth.names)
    ids = tuple(dict.fromkeys(_id_in(truth, name) for name in names))

    def load(image_id: str) -> tuple[UInt8Array, UInt8Array]:
        image = _picture(pictures, image_id)
        if image is None:
            raise DataError(f"no image of this name in {images}")
        labels = truth.read(_find(truth, image_id, "ground truth"))
        if labels.shape != image.shape[:2]:
            raise DataError(
                f"its ground truth has {labels.shape[1]}x{labels.shape[0]} pixels, the image "
                f"{image.shape[1]}x{image.shape[0]}"
            )
        return image, labels

    return Task(
        ids=ids,
        classes=classes,
        load=load,
        predict=lambda image: predict_mask(backend, image, averaging),
        picture=lambda image_id: _picture(pictures, image_id),
        provenance=Provenance(
            split=str(list_path or ground_truth),
            split_sha256=sha256_of_lines(list(ids)),
            model=backend.model,
            model_sha256=backend.model_sha256,
            backend=backend.description,
            precision=backend.spec.precision,
            labeled_sha256=backend.spec.provenance.labeled_sha256,
        ),
        protocol=replace(averaging.protocol(), truth_values=truth.description),
        surplus=() if list_path else tuple(sorted(name for name in pictures if name not in ids)),
    )


def masks_task(
    predictions: Path,
    ground_truth: Path,
    list_path: Path | None,
    *,
    classes: ClassSet,
    values: MaskValues | None = None,
    prediction_values: MaskValues | None = None,
    images: Path | None = None,
) -> Task:
    """Return the task of scoring masks against a folder of ground truth.

    All images of the list, or of the ground truth, are expected: one without a prediction fails.

    Args:
        predictions: Folder of PNG or npz masks, or a COCO results file.
        ground_truth: Folder or file of ground truth; a prediction has the relative name of its ground truth, or
            starts with the same city, sequence and frame.
        list_path: List of the images to score; None for all with ground truth.
        classes: Classes of the masks.
        values: Encoding of the ground-truth masks; None to detect it.
        prediction_values: Encoding of the predictions; None to detect it.
        images: Folder of the images, with the same names, for the examples of a report.

    Raises:
        DataError: A folder or file is missing, or the encoding of masks is ambiguous.
    """
    # Open both sides
    truth = open_masks(ground_truth, classes, values, option=TRUTH_OPTION)
    source = open_masks(predictions, classes, prediction_values, option=PREDICTION_OPTION)
    names = [entry.name for entry in read_split(list_path)] if list_path else list(truth.names)
    # Published lists name images with their folder: match them with the names of the ground truth
    ids = tuple(dict.fromkeys(_id_in(truth, name) for name in names))
    pictures = None if images is None else _pictures(images)

    def load(image_id: str) -> tuple[UInt8Array, UInt8Array]:
        labels = truth.read(_find(truth, image_id, "ground truth"))
        return source.read(_find(source, image_id, "prediction"), expected=_size(labels)), labels

    return Task(
        ids=ids,
        classes=classes,
        load=load,
        predict=lambda mask: mask,
        picture=None if pictures is None else lambda image_id: _picture(pictures, image_id),
        provenance=_masks_provenance(predictions, str(list_path or ground_truth), sha256_of_lines(list(ids))),
        protocol=Protocol(
            resolution="masks as they are", truth_values=truth.description, prediction_values=source.description
        ),
        may_lack_class=True,
        surplus=() if list_path else _without_truth(source, ids),
    )


def data_masks_task(
    predictions: Path,
    split: Split,
    *,
    classes: ClassSet,
    values: MaskValues,
    prediction_values: MaskValues | None = None,
) -> Task:
    """Return the task of scoring masks against the ground truth of a data set; see `masks_task`."""
    source, samples = open_masks(predictions, classes, prediction_values, option=PREDICTION_OPTION), _by_id(split)

    def load(image_id: str) -> tuple[UInt8Array, UInt8Array]:
        truth = read_truth(samples[image_id], classes, values=values)
        return source.read(_find(source, image_id, "prediction"), expected=_size(truth)), truth

    return Task(
        ids=tuple(samples),
        classes=classes,
        load=load,
        predict=lambda mask: mask,
        picture=lambda image_id: samples[image_id].read_image(),
        provenance=_masks_provenance(predictions, split.name, split.sha256),
        protocol=Protocol(
            resolution="masks as they are",
            truth_values=MEANINGS[values],
            prediction_values=source.description,
        ),
        may_lack_class=True,
    )


def _by_id(split: Split) -> dict[str, Sample]:
    return {sample.id: sample for sample in split.samples}


def _size(labels: UInt8Array) -> tuple[int, int]:
    return labels.shape[0], labels.shape[1]


def _masks_provenance(predictions: Path, split: str, split_sha256: str) -> Provenance:
    return Provenance(
        split=split,
        split_sha256=split_sha256,
        model=str(predictions),
        model_sha256=None,
        backend="masks on disk",
        precision="not known",
    )


def _id_in(truth: MaskSource, name: str) -> str:
    """Return the matching key of an image, or its name if it has no ground truth."""
    try:
        return image_key(truth.find(name))
    except DataError:
        return name


def _find(source: MaskSource, image_id: str, what: str) -> str:
    try:
        return source.find(image_id)
    except DataError as error:
        raise DataError(f"no {what}: {error}") from error


def _without_truth(source: MaskSource, ids: tuple[str, ...]) -> tuple[str, ...]:
    used = set()
    for image_id in ids:
        try:
            used.add(source.find(image_id))
        except DataError:
            continue
    return tuple(name for name in source.names if name not in used)


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"folder of images {folder} does not exist")
    files = below(folder, suffixes=IMAGE_SUFFIXES)
    return {image_key(PurePath(file).with_suffix("").as_posix()): folder / file for file in files}


def _picture(pictures: dict[str, Path], image_id: str) -> UInt8Array | None:
    return read_image(pictures[image_id]) if image_id in pictures else None
