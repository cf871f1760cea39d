"""A score that can be trusted and compared: the counts, what follows from them, and how they were made."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmtool import __version__
from gmtool.classes import ClassSet
from gmtool.files import write_atomically
from gmtool.metrics import Int64Array, iou_per_class, mean_iou, pixel_accuracy, recall_per_class

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Protocol:
    """How predictions were made and compared."""

    resolution: str = "whole image at its own size"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    mean: str = "over classes that occur in the ground truth or the prediction"


@dataclass(frozen=True)
class Provenance:
    """What was scored, and on what."""

    split: str
    """Name of the list or folder of ground truth."""
    split_sha256: str
    """Hash of the names of the scored images, in order."""
    model: str
    """File of the model or folder of the masks."""
    model_sha256: str | None
    """Hash of the model's weights or file; None for a folder of masks."""
    backend: str
    """What computed the masks, for example "onnxruntime CPUExecutionProvider"."""
    precision: str
    """Precision of the model's weights and activations."""
    labeled_sha256: str | None = None
    """Hash of the ids of the labeled images that the model was trained with, in order; None if not known."""


@dataclass(frozen=True)
class BestScore:
    """The best of a run's validations: chosen on the images it was scored on, it flatters by points."""

    miou: float | None
    """In [0, 1]; None when no pixel was scored."""
    iteration: int
    """Optimiser steps behind it."""


@dataclass(frozen=True)
class IoUReport:
    """One int64 confusion matrix over a set of images, and all that follows from it."""

    confusion: Int64Array
    """(C, C): rows are true classes, columns predicted ones, in pixels."""
    classes: ClassSet
    num_images: int
    """Images that were scored."""
    failed: tuple[str, ...]
    """One line for each image that could not be scored; these are left out of every figure."""
    provenance: Provenance
    protocol: Protocol = Protocol()
    best: BestScore | None = None
    """Of a training run, whose report is otherwise that of its last weights."""

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, in [0, 1]; NaN when nothing was scored."""
        return mean_iou(self.confusion)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; classes that occur nowhere have null figures."""
        iou, recall = iou_per_class(self.confusion), recall_per_class(self.confusion)
        return {
            "format_version": FORMAT_VERSION,
            "gmtool_version": __version__,
            "miou": _null_if_nan(self.miou),
            "pixel_accuracy": _null_if_nan(pixel_accuracy(self.confusion)),
            "classes": [
                {
                    "name": name,
                    "iou": _null_if_nan(iou[index]),
                    "accuracy": _null_if_nan(recall[index]),
                    "pixels": int(self.confusion[index].sum()),
                }
                for index, name in enumerate(self.classes.names)
            ],
            "best": None if self.best is None else asdict(self.best),
            "num_images": self.num_images,
            "failed": list(self.failed),
            "ignore_index": self.classes.ignore_index,
            "protocol": asdict(self.protocol),
            "provenance": asdict(self.provenance),
            "confusion_matrix": self.confusion.tolist(),
        }

    def to_markdown(self) -> str:
        """Return a report for people: headline, one row a class, provenance."""
        value = self.to_dict()
        origin, protocol = self.provenance, self.protocol
        lines = [
            f"# mIoU {percent(self.miou)} % on {origin.split}",
            "",
            f"{self.num_images} images scored, {len(self.failed)} failed; "
            f"pixel accuracy {percent(pixel_accuracy(self.confusion))} %.",
            *self._best_lines(),
            "",
            "| class | IoU % | accuracy % | pixels |",
            "|---|---:|---:|---:|",
            *(
                f"| {row['name']} | {percent(row['iou'])} | {percent(row['accuracy'])} | {row['pixels']} |"
                for row in value["classes"]
            ),
            "",
            f"- model: `{origin.model}`, sha256 `{origin.model_sha256 or 'not known'}`",
            f"- computed by {origin.backend}, {origin.precision}",
            f"- labeled images: sha256 of their names `{origin.labeled_sha256 or 'not known'}`",
            f"- split: `{origin.split}`, sha256 of the image names `{origin.split_sha256}`",
            f"- protocol: {protocol.resolution}, scales {list(protocol.scales)}, "
            f"flip {'on' if protocol.flip else 'off'}, label {self.classes.ignore_index} ignored, "
            f"mean {protocol.mean}; a class that occurs in neither is shown as - and not in the mean",
            f"- gmtool {__version__}",
        ]
        if self.failed:
            lines += ["", "## Failed", "", *(f"- {line}" for line in self.failed)]
        return "\n".join(lines) + "\n"

    def _best_lines(self) -> list[str]:
        if self.best is None:
            return []
        line = (
            f"Last weights; the best of this run: {percent(self.best.miou)} % at iteration {self.best.iteration}"
        )
        return ["", f"{line}, chosen on these images, so it flatters."]

    def save(self, folder: Path) -> None:
        """Write `report.json` and `report.md` into an existing folder."""
        write_atomically(folder / "report.json", json.dumps(self.to_dict(), indent=1) + "\n")
        write_atomically(folder / "report.md", self.to_markdown())


def percent(ratio: float | None) -> str:
    """Return a ratio in [0, 1] as per cent with two digits, or "-" for none."""
    return "-" if ratio is None or math.isnan(ratio) else f"{100 * ratio:.2f}"


def _null_if_nan(value: float | np.floating[Any]) -> float | None:
    return None if math.isnan(value) else float(value)
