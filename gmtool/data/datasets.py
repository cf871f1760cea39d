"""Labeled, unlabeled and validation images of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gmtool.config import DataConfig
from gmtool.data.layouts import Layout, open_layout
from gmtool.data.samples import PARTS, Part, Sample, images_below
from gmtool.data.splits import read_split
from gmtool.errors import DataError
from gmtool.files import sha256_of_lines


@dataclass(frozen=True)
class Split:
    """Named, ordered set of samples."""

    name: str
    """Split list or folder that defines it."""
    samples: tuple[Sample, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 of the ids in order."""
        return sha256_of_lines([sample.id for sample in self.samples])


@dataclass(frozen=True)
class TrainingData:
    """Labeled, unlabeled and validation split of a run; validation shares no image with the others."""

    labeled: Split
    unlabeled: Split
    val: Split


def load_training_data(config: DataConfig) -> TrainingData:
    """Find images and masks of a run. No image is decoded, and no mask of an unlabeled image is opened.

    Raises:
        DataError: A folder, list, image or mask is missing, or validation overlaps with training.
    """
    layout = open_layout(config)
    labeled = _split(layout, "train", config.labeled, with_masks=True)
    val = _split(layout, "val", config.val, with_masks=True)
    if config.unlabeled is None and config.labeled is None:
        unlabeled = Split("none", ())
    elif config.unlabeled is None:
        rest = _split(layout, "train", None, with_masks=False)
        known = {sample.image_path for sample in labeled.samples}
        left = tuple(sample for sample in rest.samples if sample.image_path not in known)
        unlabeled = Split(f"{rest.name} without {labeled.name}", left)
    elif config.unlabeled.is_dir():
        unlabeled = Split(str(config.unlabeled), images_below(config.unlabeled, layout.reading))
    else:
        unlabeled = _split(layout, "train", config.unlabeled, with_masks=False)
    _refuse_overlap(labeled, val)
    _refuse_overlap(unlabeled, val)
    return TrainingData(labeled, unlabeled, val)


def load_split(config: DataConfig, part: Part, list_path: Path | None, *, missing_masks: bool = False) -> Split:
    """Return images and masks of a split list, or of the layout's own `train` or `val` part.

    Args:
        config: The data set.
        part: Part of the layout.
        list_path: Split list; None: the layout's own part.
        missing_masks: Accept mask files that do not exist; reading them then fails.

    Raises:
        DataError: A folder, list, image or mask is missing.
    """
    layout = open_layout(config, parts=PARTS if list_path else (part,))
    return _split(layout, part, list_path, with_masks=True, missing_masks=missing_masks)


def _split(
    layout: Layout, part: Part, list_path: Path | None, *, with_masks: bool, missing_masks: bool = False
) -> Split:
    if list_path is not None:
        name, entries = str(list_path), read_split(list_path)
    elif part in layout.parts:
        name, entries = layout.parts[part]
    else:
        option = "--labels" if part == "train" else "--val"
        raise DataError(
            f"{layout.root} has no {layout.part_hints[part]}: give {option} LIST with one image a line"
        )
    return Split(name, layout.samples(entries, with_masks=with_masks, where=name, missing_masks=missing_masks))


def _refuse_overlap(training: Split, val: Split) -> None:
    shared = _image_paths(training.samples) & _image_paths(val.samples)
    if shared:
        raise DataError(
            f"{training.name} and {val.name} share {len(shared)} images, for example "
            f"{sorted(shared)[0].name}: validation images must not be training images"
        )


def _image_paths(samples: Iterable[Sample]) -> set[Path]:
    return {sample.image_path.resolve() for sample in samples}
