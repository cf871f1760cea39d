"""IoU report: confusion matrix, metrics, protocol and provenance, as `report.json`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from gmtool import __version__
from gmtool.classes import ClassSet
from gmtool.errors import DataError
from gmtool.files import write_atomically
from gmtool.json_toml import format_version, read_json, shown, typed
from gmtool.report.boundary import DILATION_RATIO, boundary_iou_per_class
from gmtool.report.image_scores import ImageScores, Interval, miou_interval
from gmtool.report.metrics import (
    Float64Array,
    Int64Array,
    iou_per_class,
    mean_iou,
    mean_of_known,
    pixel_accuracy,
    precision_per_class,
    recall_per_class,
    true_pixels,
)

FORMAT_VERSION = 2
JSON_NAME = "report.json"


@dataclass(frozen=True)
class Protocol:
    """Evaluation protocol."""

    resolution: str = "whole image at its own size"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    mean: str = "over classes that occur in the ground truth or the prediction"
    truth_values: str = "not said"
    """Encoding of the ground truth, and the reason."""
    prediction_values: str = "the model's masks"
    """Encoding of the predicted masks, and the reason."""


@dataclass(frozen=True)
class Provenance:
    """Provenance of a score: model, data, runtime."""

    split: str
    """Name of the list or folder of ground truth."""
    split_sha256: str
    """SHA-256 of the image names, in order."""
    model: str
    """Path of the model or of the folder of masks."""
    model_sha256: str | None
    """SHA-256 of the model's weights or file; None for a folder of masks."""
    backend: str
    """Runtime of the model, for example "onnxruntime CPUExecutionProvider"."""
    precision: str
    """Precision of the model's weights and activations."""
    labeled_sha256: str | None = None
    """SHA-256 of the ids of the labeled training images, in order; None if unknown."""
    truth_sha256: str | None = None
    """SHA-256 of the ground truth of all scored images, in order; None if unknown."""
    versions: tuple[str, ...] = ()
    """Versions of the libraries, such as "numpy 2.4.6"."""


@dataclass(frozen=True)
class BestScore:
    """Best validation score of a run; optimistic, since it is chosen on the validation images."""

    miou: float | None
    """mIoU in [0, 1]; None if no pixel was scored."""
    iteration: int
    """Optimiser steps done."""
    images: int | None = None
    """Number of images that it was scored on, if not on all."""


@dataclass(frozen=True)
class IoUReport:
    """Confusion matrix over a set of images, with metrics, protocol and provenance."""

    confusion: Int64Array
    """(C, C) int64 pixels: rows are true classes, columns predicted ones. A further column, (C, C + 1), has the
    pixels without a predicted class."""
    classes: ClassSet
    num_images: int
    """Number of scored images."""
    failed: tuple[str, ...]
    """One line for each image that could not be scored; it counts in no figure."""
    provenance: Provenance
    protocol: Protocol = Protocol()
    best: BestScore | None = None
    """Best validation of a training run; the rest of the report is about its last weights."""
    left_out: tuple[str, ...] = ()
    """One line for each image without pixels to score: all ignored, or without ground truth."""
    ignored_pixels: int | None = None
    """Ignored pixels of the scored images; None if not counted."""
    images: ImageScores | None = None
    """Scores of each image; None if not kept."""
    boundary: Int64Array | None = None
    """(2, C): intersection and union of the boundaries; None without boundary IoU."""

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, in [0, 1]; NaN if no pixel was scored."""
        return mean_iou(self.confusion)

    @cached_property
    def interval(self) -> Interval | None:
        """Bootstrap interval of the mIoU over images; None with scores of fewer than two images."""
        return None if self.images is None else miou_interval(self.images)

    @property
    def boundary_iou(self) -> Float64Array | None:
        """(C,): boundary IoU of each class, in [0, 1]; None if not computed."""
        return None if self.boundary is None else boundary_iou_per_class(self.boundary)

    @property
    def no_class(self) -> Int64Array:
        """(C,): counted pixels of each true class without a predicted class."""
        columns: Int64Array = self.confusion[:, len(self.classes) :].sum(axis=1)
        return columns

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; absent classes have null figures."""
        recall, interval = recall_per_class(self.confusion), self.interval
        value: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "gmtool_version": __version__,
            "miou": _null_if_nan(self.miou),
            "miou_interval": None if interval is None else asdict(interval),
            "pixel_accuracy": _null_if_nan(pixel_accuracy(self.confusion)),
            "mean_accuracy": _null_if_nan(mean_of_known(recall)),
            "classes": self._class_rows(),
            "best": None if self.best is None else asdict(self.best),
            "num_images": self.num_images,
            "failed": list(self.failed),
            "left_out": list(self.left_out),
            "ignore_index": self.classes.ignore_index,
            "ignored_pixels": self.ignored_pixels,
            "protocol": asdict(self.protocol),
            "provenance": asdict(self.provenance),
            "class_set": self.classes.to_dict(),
            "confusion_matrix": self.confusion[:, : len(self.classes)].tolist(),
            "no_class": self.no_class.tolist(),
        }
        if (boundary_iou := self.boundary_iou) is not None:
            value["boundary_miou"] = _null_if_nan(mean_of_known(boundary_iou))
            value["boundary_dilation_ratio"] = DILATION_RATIO
        if self.images is not None:
            value["images"] = _image_rows(self.images)
        return value

    def _class_rows(self) -> list[dict[str, Any]]:
        columns: dict[str, Float64Array] = {
            "iou": iou_per_class(self.confusion),
            "accuracy": recall_per_class(self.confusion),
            "precision": precision_per_class(self.confusion),
        }
        if (boundary_iou := self.boundary_iou) is not None:
            columns["boundary_iou"] = boundary_iou
        pixels = true_pixels(self.confusion)
        return [
            {"name": name}
            | {key: _null_if_nan(values[index]) for key, values in columns.items()}
            | {"pixels": int(pixels[index])}
            | ({} if self.boundary is None else {"boundary_pixels": self.boundary[:, index].tolist()})
            for index, name in enumerate(self.classes.names)
        ]

    def save_json(self, folder: Path) -> None:
        """Write `report.json` into an existing folder."""
        write_atomically(folder / JSON_NAME, format_json(self.to_dict()) + "\n")


def load_report(path: Path) -> IoUReport:
    """Read a `report.json` of `gmtool evaluate`, or the one in a folder.

    Raises:
        DataError: File missing, damaged, written by a newer gmtool, or without image scores.
    """
    path = path / JSON_NAME if path.is_dir() else path
    what = "a report of gmtool evaluate"
    value = read_json(path, what=what)
    format_version(value, newest=FORMAT_VERSION, where=str(path), what=what)
    if "images" not in value:
        raise DataError(f"{path} has no scores of single images: write it again with gmtool evaluate --out")
    try:
        return _from_dict(value, where=f"{path}: not {what}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not {what}: {shown(str(error))}") from error


def _from_dict(value: dict[str, Any], *, where: str) -> IoUReport:
    classes = ClassSet.from_dict(value["class_set"], where=where)
    count = len(classes)
    boundary = [row["boundary_pixels"] for row in value["classes"] if "boundary_pixels" in row]
    confusion = _counts(value["confusion_matrix"], (count, count), name="confusion_matrix")
    stated = typed(_Stated, {key: value[key] for key in get_type_hints(_Stated)}, where=where)
    return IoUReport(
        confusion=np.hstack([confusion, _counts(value["no_class"], (count,), name="no_class")[:, None]]),
        classes=classes,
        **vars(stated),
        images=_images_from_rows(value["images"], count, where=where),
        boundary=_counts(boundary, (count, 2), name="boundary_pixels").T if boundary else None,
    )


@dataclass(frozen=True)
class _Stated:
    """Fields of a report that are read as they are."""

    num_images: int
    failed: tuple[str, ...]
    provenance: Provenance
    protocol: Protocol
    best: BestScore | None
    left_out: tuple[str, ...]
    ignored_pixels: int | None


def _counts(value: Any, shape: tuple[int, ...], *, name: str) -> Int64Array:
    """Return counted pixels as an array.

    Raises:
        ValueError: Wrong shape, not whole numbers, or below zero.
    """
    array = np.array(value)
    flat = np.array(value, dtype=object).ravel()
    if array.shape != shape or set(map(type, flat)) - {int} or (array.size and array.min() < 0):
        raise ValueError(f"{name}: expected whole numbers from 0, {'x'.join(map(str, shape))} of them")
    return array.astype(np.int64)


def _image_rows(images: ImageScores) -> list[dict[str, Any]]:
    miou, accuracy, union = images.miou, images.accuracy, images.union
    return [
        {
            "id": image_id,
            "truth_sha256": images.truth_sha256[place],
            "miou": _null_if_nan(miou[place]),
            "pixel_accuracy": _null_if_nan(accuracy[place]),
            # By class index of the classes that occur: hits, true pixels, predicted pixels
            "counts": {
                str(index): [int(array[place, index]) for array in (images.hits, images.truth, images.predicted)]
                for index in np.flatnonzero(union[place])
            },
        }
        for place, image_id in enumerate(images.ids)
    ]


def _images_from_rows(rows: list[dict[str, Any]], num_classes: int, *, where: str) -> ImageScores:
    counts = np.zeros((3, len(rows), num_classes), dtype=np.int64)
    indices = {str(index): index for index in range(num_classes)}
    for place, row in enumerate(rows):
        if row["counts"]:
            three = _counts(list(row["counts"].values()), (len(row["counts"]), 3), name=f"images[{place}].counts")
            counts[:, place, [indices[index] for index in row["counts"]]] = three.T
    hits, truth, predicted = counts
    if (hits > np.minimum(truth, predicted)).any():
        raise ValueError("an image has more hits than pixels of a class")
    names = [[row["id"], row["truth_sha256"]] for row in rows]
    pairs = typed(tuple[tuple[str, str], ...], names, where=f"{where}: id and truth_sha256 of its images")
    ids, hashes = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    return ImageScores(ids, hashes, hits, truth, predicted)


def format_json(value: Any, indent: int = 0) -> str:
    """Return readable JSON: short objects, and lists without objects, on one line."""
    line = json.dumps(value)
    items = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(value, (dict, list)) or len(line) <= 100:
        return line
    if isinstance(value, list) and not any(isinstance(item, (dict, list, str)) for item in items):
        return line
    if isinstance(value, dict) and "counts" in value:  # an image, of thousands
        return line
    pad = " " * (indent + 1)
    keys = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(items)
    body = ",\n".join(pad + key + format_json(item, indent + 1) for key, item in zip(keys, items, strict=True))
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{body}\n{' ' * indent}{closing}"


def percent(ratio: float | None, digits: int = 2) -> str:
    """Return a ratio in [0, 1] as per cent; "-" for None and NaN."""
    return "-" if ratio is None or math.isnan(ratio) else f"{100 * ratio:.{digits}f}"


def _null_if_nan(value: float | np.floating[Any]) -> float | None:
    return None if math.isnan(value) else float(value)
