"""Labeled, unlabeled and validation images of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from gmtool.config import DataConfig
from gmtool.data.layouts import Layout, open_layout
from gmtool.data.samples import PARTS, Part, Sample, images_below
from gmtool.data.splits import SplitEntry, read_split
from gmtool.errors import DataError
from gmtool.files import sha256_of_lines

FEWEST_LABELED = 3
"""Labeled training images that `gmtool train DIR` needs: it keeps some out of a fit to choose settings."""


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

    Without a list, labeled are the training images with a mask, and unlabeled are the others but the validation
    images. Training images are those of the layout's part, or all images if it has no such part.

    Raises:
        DataError: A folder, list, image or mask is missing, or two lists overlap.
    """
    layout = open_layout(config)
    labeled = _split(layout, "train", config.labeled, with_masks=True) if config.labeled else None
    val = _split(layout, "val", config.val, with_masks=True)
    if labeled is None:
        labeled = _with_masks(layout)
        labeled = _without(labeled, val) if config.val else labeled
    if config.unlabeled is None:
        unlabeled = _rest(layout, labeled, val, is_listed=config.labeled is not None)
    elif config.unlabeled.is_dir():
        below = Split(str(config.unlabeled), images_below(config.unlabeled, layout.reading))
        unlabeled = _without(below, labeled, val)
    else:
        unlabeled = _split(layout, "train", config.unlabeled, with_masks=False)
    _refuse_overlap(labeled, val)
    _refuse_overlap(unlabeled, val)
    return TrainingData(labeled, unlabeled, val)


def load_candidates(config: DataConfig) -> tuple[Split, Split]:
    """Return the training images with and without a mask, whatever lists say.

    Raises:
        DataError: A folder or image is missing, a mask of a listed image, or all masks.
    """
    layout = open_layout(config)
    own_val = _split(layout, "val", None, with_masks=False) if "val" in layout.parts else Split("none", ())
    masked = _with_masks(layout)
    return masked, _rest(layout, masked, own_val, is_listed=False)


def training_pool(layout: Layout) -> tuple[str, list[SplitEntry]]:
    """Return name and entries of the training images: those of the layout's part, else all but the other parts."""
    if "train" in layout.parts:
        return layout.parts["train"]
    others = ("test/", *(f"{part}/" for part in layout.parts))
    listed = {entry.name for _, entries in layout.parts.values() for entry in entries}
    names = [name for name in layout.ids.values() if not name.startswith(others) and name not in listed]
    return str(layout.image_dir), [SplitEntry(name, None, None) for name in sorted(names)]


def _with_masks(layout: Layout) -> Split:
    """Return the training images with a mask; of a list, all must have one."""
    name, entries = training_pool(layout)
    if Path(name).is_file():
        return Split(name, layout.samples(entries, with_masks=True, where=name))
    samples = layout.samples(entries, with_masks=True, where=name, missing_masks=True)
    masked = tuple(sample for sample in samples if layout.has_mask(sample.image_path))
    if not masked:
        layout.samples(entries[:1], with_masks=True, where=name)  # says which mask was expected
        raise _no_part(layout, "train")
    if len(masked) == len(samples):
        return Split(name, masked)
    return Split(f"{len(masked)} of {len(samples)} images of {name} with a mask", masked)


def _rest(layout: Layout, labeled: Split, val: Split, *, is_listed: bool) -> Split:
    """Return the training images that are neither labeled nor for validation.

    Args:
        layout: The data set.
        labeled: Labeled images.
        val: Validation images.
        is_listed: Whether a list says which images are labeled; else they are those with a mask.
    """
    name, entries = training_pool(layout)
    if not is_listed and Path(name).is_file():
        return Split("none", ())
    pool = Split(name, layout.samples(entries, with_masks=False, where=name))
    rest = _without(pool, labeled, val)
    if is_listed:
        return rest
    return Split(f"those of {name} without a mask", rest.samples) if rest.samples else Split("none", ())


def _without(split: Split, *others: Split) -> Split:
    """Return a split less the images of others, and named so."""
    left, less = split.samples, []
    for other in others:
        known = _image_paths(other.samples)
        kept = tuple(sample for sample in left if sample.image_path.resolve() not in known)
        if len(kept) < len(left):
            less.append(Path(other.name).name)
        left = kept
    return Split(f"{split.name} without {' and '.join(less)}" if less else split.name, left)


def load_split(
    config: DataConfig,
    part: Part,
    list_path: Path | None,
    *,
    missing_masks: bool = False,
    option: str | None = None,
) -> Split:
    """Return images and masks of a split list, or of the layout's own `train` or `val` part.

    Args:
        config: The data set.
        part: Part of the layout.
        list_path: Split list; None: the layout's own part.
        missing_masks: Accept mask files that do not exist; reading them then fails.
        option: Option that takes the list, for messages; by default that of training.

    Raises:
        DataError: A folder, list, image or mask is missing.
    """
    layout = open_layout(config, parts=PARTS if list_path else (part,))
    return _split(layout, part, list_path, with_masks=True, missing_masks=missing_masks, option=option)


def _split(
    layout: Layout,
    part: Part,
    list_path: Path | None,
    *,
    with_masks: bool,
    missing_masks: bool = False,
    option: str | None = None,
) -> Split:
    if list_path is not None:
        name, entries = str(list_path), read_split(list_path)
    elif part in layout.parts:
        name, entries = layout.parts[part]
    else:
        raise _no_part(layout, part, option)
    return Split(name, layout.samples(entries, with_masks=with_masks, where=name, missing_masks=missing_masks))


def _no_part(layout: Layout, part: Part, option: str | None = None) -> DataError:
    option = option or ("--labels" if part == "train" else "--val")
    line = f"{layout.root} has no {layout.part_hints[part]}: give {option} LIST with one image a line"
    if option == "--val":
        root, out = quote(str(layout.root)), quote(str(layout.root / "splits"))
        line += f"; gmtool data split {root} --val 0.2 --out {out} makes one"
    return DataError(line)


def _refuse_overlap(training: Split, val: Split) -> None:
    shared = _image_paths(training.samples) & _image_paths(val.samples)
    if shared:
        raise DataError(
            f"{training.name} and {val.name} share {len(shared)} images, for example "
            f"{sorted(shared)[0].name}: validation images must not be training images; "
            "take them out of one of the two"
        )


def _image_paths(samples: Iterable[Sample]) -> set[Path]:
    return {sample.image_path.resolve() for sample in samples}
