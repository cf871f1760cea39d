"""Data set layouts on disk, and which of their images are labeled, unlabeled and for validation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gmtool.config import DataConfig, LayoutName
from gmtool.errors import DataError
from gmtool.files import sha256_of_lines
from gmtool.splits import IMAGE_SUFFIXES, SplitEntry, read_split

Part = Literal["train", "val"]


@dataclass(frozen=True)
class Sample:
    """One image of a data set. `mask_path` is None where no mask may be looked at."""

    id: str
    image_path: Path
    mask_path: Path | None


@dataclass(frozen=True)
class Split:
    """A named, ordered set of images."""

    name: str
    """The list or the folder that defines it."""
    samples: tuple[Sample, ...]

    @property
    def sha256(self) -> str:
        """Hash of the ids in order."""
        return sha256_of_lines([sample.id for sample in self.samples])


@dataclass(frozen=True)
class TrainingData:
    """The three splits of a run; validation shares no image with the other two."""

    labeled: Split
    unlabeled: Split
    val: Split


def load_training_data(config: DataConfig) -> TrainingData:
    """Find every image and mask that a run needs. No image is decoded, no mask of an unlabeled one looked at.

    Raises:
        DataError: A folder, list, image or mask is missing, or validation overlaps with training.
    """
    layout = _open_layout(config)
    labeled = layout.split("train", config.labeled, with_masks=True)
    val = layout.split("val", config.val, with_masks=True)
    if config.unlabeled is None and config.labeled is None:
        unlabeled = Split("none", ())
    elif config.unlabeled is None:
        rest = layout.split("train", None, with_masks=False)
        known = {sample.image_path for sample in labeled.samples}
        left = tuple(sample for sample in rest.samples if sample.image_path not in known)
        unlabeled = Split(f"{rest.name} without {labeled.name}", left)
    else:
        unlabeled = layout.split("train", config.unlabeled, with_masks=False)
    _refuse_overlap(labeled, val)
    _refuse_overlap(unlabeled, val)
    return TrainingData(labeled, unlabeled, val)


def load_split(config: DataConfig, part: Part, list_path: Path | None) -> Split:
    """Return the images and masks of a list, or of the layout's own `train` or `val` part."""
    return _open_layout(config).split(part, list_path, with_masks=True)


@dataclass(frozen=True)
class _Layout:
    """What differs between layouts: where things are, and what the data set itself calls train and val."""

    root: Path
    image_dir: Path
    mask_dir: Path
    images: dict[str, Path]
    """Image by id: its path below `image_dir` without the suffix."""
    parts: dict[str, tuple[str, list[SplitEntry]]]
    """Name and entries of the parts that the data set itself defines."""
    part_hint: str
    """Where a part would have been found, for messages."""

    def split(self, part: Part, list_path: Path | None, *, with_masks: bool) -> Split:
        if list_path is not None:
            name, entries = str(list_path), read_split(list_path)
        elif part in self.parts:
            name, entries = self.parts[part]
        else:
            option = "--labels" if part == "train" else "--val"
            raise DataError(
                f"{self.root} has no {self.part_hint.format(part=part)}: give {option} LIST with one image a line"
            )
        return Split(name, tuple(self._sample(entry, with_masks, where=name) for entry in entries))

    def _sample(self, entry: SplitEntry, with_mask: bool, *, where: str) -> Sample:
        image_path = self._image_path(entry, where=where)
        mask_path = self._mask_path(entry, image_path, where=where) if with_mask else None
        return Sample(entry.name, image_path, mask_path)

    def _image_path(self, entry: SplitEntry, *, where: str) -> Path:
        if entry.image is not None and (self.root / entry.image).is_file():
            return self.root / entry.image
        candidates = [entry.name, f"train/{entry.name}", f"val/{entry.name}"]
        found = [self.images[name] for name in candidates if name in self.images]
        if not found:
            raise DataError(f"{where}: no image {entry.image or entry.name} below {self.image_dir}")
        if len(found) > 1:
            raise DataError(f"{where}: {entry.name} could be {found[0]} or {found[1]}: write its path")
        return found[0]

    def _mask_path(self, entry: SplitEntry, image_path: Path, *, where: str) -> Path:
        if entry.mask is not None:
            mask_path = self.root / entry.mask
            if not mask_path.is_relative_to(self.mask_dir):
                raise DataError(
                    f"{where} names mask {entry.mask}, but masks are taken from {self.mask_dir}: masks of two "
                    f"folders are not mixed (--set data.mask_dir={Path(entry.mask).parent})"
                )
        elif image_path.is_relative_to(self.image_dir):
            mask_path = (self.mask_dir / image_path.relative_to(self.image_dir)).with_suffix(".png")
        else:
            raise DataError(f"{where}: {image_path} lies outside {self.image_dir}: name its mask beside it")
        if not mask_path.is_file():
            raise DataError(f"{where}: image {image_path} has no mask: expected {mask_path}")
        return mask_path


def _open_layout(config: DataConfig) -> _Layout:
    if not config.root.is_dir():
        raise DataError(f"data set folder {config.root} does not exist")
    openers = {"voc": _open_voc, "folder": _open_folder}
    return openers[config.layout](config)


def _open_voc(config: DataConfig) -> _Layout:
    for root in (config.root, config.root / "VOC2012", config.root / "VOCdevkit" / "VOC2012"):
        if (root / "JPEGImages").is_dir():
            break
    else:
        raise _wrong_layout(config.root, "voc", "JPEGImages")
    lists = {part: root / "ImageSets" / "Segmentation" / f"{part}.txt" for part in ("train", "val")}
    return _Layout(
        root=root,
        image_dir=root / "JPEGImages",
        mask_dir=root / config.mask_dir,
        images=_index_images(root / "JPEGImages"),
        parts={part: (str(path), read_split(path)) for part, path in lists.items() if path.is_file()},
        part_hint="ImageSets/Segmentation/{part}.txt",
    )


def _open_folder(config: DataConfig) -> _Layout:
    image_dir = config.root / "images"
    if not image_dir.is_dir():
        raise _wrong_layout(config.root, "folder", "images")
    images = _index_images(image_dir)
    parts = {}
    for part in ("train", "val"):
        names = [name for name in images if name.startswith(f"{part}/")]
        if names:
            parts[part] = (str(image_dir / part), [SplitEntry(name, None, None) for name in names])
    return _Layout(
        root=config.root,
        image_dir=image_dir,
        mask_dir=config.root / "masks",
        images=images,
        parts=parts,
        part_hint="images/{part} folder",
    )


def _index_images(folder: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in images:
            raise DataError(f"{images[name]} and {path} differ in their suffix alone: which is {name}?")
        images[name] = path
    return images


def _wrong_layout(root: Path, layout: LayoutName, expected: str) -> DataError:
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    other = {"voc": "folder", "folder": "voc"}[layout]
    return DataError(
        f"{root} is not a data set of layout {layout}: expected a folder {expected} in it, found "
        f"{', '.join(found[:5]) or 'no folders'}; is it of layout {other}?"
    )


def _refuse_overlap(training: Split, val: Split) -> None:
    shared = _image_paths(training.samples) & _image_paths(val.samples)
    if shared:
        raise DataError(
            f"{training.name} and {val.name} share {len(shared)} images, for example "
            f"{sorted(shared)[0].name}: a score on images that were trained on means nothing"
        )


def _image_paths(samples: Iterable[Sample]) -> set[Path]:
    return {sample.image_path.resolve() for sample in samples}
