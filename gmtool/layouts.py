"""How data sets lie on disk: where an image is, where its mask is, and what is called train and val."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gmtool.config import DataConfig, LayoutName
from gmtool.errors import DataError
from gmtool.splits import IMAGE_SUFFIXES, SplitEntry, read_split

Part = Literal["train", "val"]


@dataclass(frozen=True)
class Sample:
    """One image of a data set. `mask_path` is None where no mask may be looked at."""

    id: str
    """The image's path below the image folder without its suffix, however a list names it."""
    image_path: Path
    mask_path: Path | None


@dataclass(frozen=True)
class Layout:
    """What differs between data sets."""

    root: Path
    image_dir: Path
    mask_dir: Path
    mask_of: Callable[[Path], Path]
    """From an image's path below `image_dir` to its mask's path below `mask_dir`."""
    images: dict[str, Path]
    """Image by id."""
    parts: dict[str, tuple[str, list[SplitEntry]]]
    """Name and entries of the parts that the data set itself defines."""
    part_hints: dict[str, str]
    """What a part would have been found in, for messages."""

    def sample(self, entry: SplitEntry, *, with_mask: bool, where: str) -> Sample:
        """Return the image, and on request the mask, that a line of a split list means.

        Args:
            entry: The line.
            with_mask: Whether the mask must be there; else nothing looks for one.
            where: The list, for messages.

        Raises:
            DataError: The image or its mask does not exist, or several images could be meant.
        """
        image_path = self._image_path(entry, where=where)
        mask_path = self._mask_path(entry, image_path, where=where) if with_mask else None
        inside = image_path.is_relative_to(self.image_dir)
        name = image_path.relative_to(self.image_dir).with_suffix("").as_posix() if inside else entry.name
        return Sample(name, image_path, mask_path)

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
            self._refuse_other_kind(mask_path, image_path, where=where)
        elif image_path.is_relative_to(self.image_dir):
            mask_path = self.mask_dir / self.mask_of(image_path.relative_to(self.image_dir))
        else:
            raise DataError(f"{where}: {image_path} lies outside {self.image_dir}: name its mask beside it")
        if not mask_path.is_file():
            raise DataError(f"{where}: image {image_path} has no mask: expected {mask_path}")
        return mask_path

    def _refuse_other_kind(self, mask_path: Path, image_path: Path, *, where: str) -> None:
        """Refuse a listed labelIds file where labelTrainIds are read, and the other way round."""
        kinds = {"labelIds": "raw", "labelTrainIds": "index"}
        named = next((kind for kind in kinds if mask_path.stem.endswith(f"_{kind}")), None)
        if named is not None and not self.mask_of(image_path).stem.endswith(f"_{named}"):
            values = kinds[named]
            raise DataError(f"{where} names {mask_path.name}: --set data.mask_values={values} reads {named} files")


def open_layout(config: DataConfig) -> Layout:
    """Find the images of a data set and the parts that it defines. No image is opened.

    Raises:
        DataError: The folder is missing, of another layout, or two images have one name.
    """
    if not config.root.is_dir():
        raise DataError(f"data set folder {config.root} does not exist")
    openers = {"voc": _open_voc, "cityscapes": _open_cityscapes, "folder": _open_folder}
    return openers[config.layout](config)


def images_below(folder: Path) -> tuple[Sample, ...]:
    """Return every image in a plain folder and below it, without masks.

    Raises:
        DataError: There is none, or two differ in their suffix alone.
    """
    images = _index_images(folder)
    if not images:
        raise DataError(f"{folder}: no image in it; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return tuple(Sample(name, path, None) for name, path in images.items())


def _open_voc(config: DataConfig) -> Layout:
    years = [year for name in ("VOC2012", "VOC2010") for year in (name, f"VOCdevkit/{name}")]
    for root in (config.root, *(config.root / year for year in years)):
        if (root / "JPEGImages").is_dir():
            break
    else:
        raise _wrong_layout(config.root, "voc", "JPEGImages")
    lists = {"train": root / config.train_list, "val": root / config.val_list}
    return Layout(
        root=root,
        image_dir=root / "JPEGImages",
        mask_dir=root / config.mask_dir,
        mask_of=_png,
        images=_index_images(root / "JPEGImages"),
        parts={part: (str(path), read_split(path)) for part, path in lists.items() if path.is_file()},
        part_hints={part: str(path.relative_to(root)) for part, path in lists.items()},
    )


def _open_folder(config: DataConfig) -> Layout:
    image_dir = config.root / "images"
    if not image_dir.is_dir():
        raise _wrong_layout(config.root, "folder", "images")
    images = _index_images(image_dir)
    return Layout(
        root=config.root,
        image_dir=image_dir,
        mask_dir=config.root / "masks",
        mask_of=_png,
        images=images,
        parts=_parts_below(image_dir, images),
        part_hints={part: f"images in images/{part}" for part in ("train", "val")},
    )


def _open_cityscapes(config: DataConfig) -> Layout:
    image_dir = config.root / "leftImg8bit"
    if not image_dir.is_dir():
        raise _wrong_layout(config.root, "cityscapes", "leftImg8bit")
    suffix = "gtFine_labelIds" if config.mask_values == "raw" else "gtFine_labelTrainIds"
    by_path = _index_images(image_dir)
    # Lists name images by path, by file name, or by <city>_<sequence>_<frame>
    by_file = {Path(name).name: path for name, path in by_path.items()}
    if len(by_file) < len(by_path):
        raise DataError(f"{image_dir}: two images have one file name; Cityscapes has each frame once")
    by_frame = {name.removesuffix("_leftImg8bit"): path for name, path in by_file.items()}
    return Layout(
        root=config.root,
        image_dir=image_dir,
        mask_dir=config.root / "gtFine",
        mask_of=lambda image: image.with_name(f"{image.stem.removesuffix('leftImg8bit')}{suffix}.png"),
        images=by_frame | by_file | by_path,
        parts=_parts_below(image_dir, by_path),
        part_hints={part: f"images in leftImg8bit/{part}" for part in ("train", "val")},
    )


def _parts_below(image_dir: Path, images: dict[str, Path]) -> dict[str, tuple[str, list[SplitEntry]]]:
    """Return the parts that are folders of their own: `train/` and `val/`."""
    entries = {
        part: [SplitEntry(name, None, None) for name in images if name.startswith(f"{part}/")]
        for part in ("train", "val")
    }
    return {part: (str(image_dir / part), found) for part, found in entries.items() if found}


def _png(image: Path) -> Path:
    return image.with_suffix(".png")


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
    marks = {"JPEGImages": "voc", "leftImg8bit": "cityscapes", "images": "folder"}
    likely = [f"; is it of layout {marks[name]}?" for name in found if name in marks]
    return DataError(
        f"{root} is not a data set of layout {layout}: expected a folder {expected} in it, found "
        f"{', '.join(found[:5]) or 'no folders'}{likely[0] if likely else ''}"
    )
