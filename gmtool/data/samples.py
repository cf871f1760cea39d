"""One image of a data set with its ground truth, and how a line of a split list finds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Literal

from PIL import Image

from gmtool.data.splits import SplitEntry
from gmtool.errors import DataError, some_names
from gmtool.file_kinds import MASK_SUFFIXES
from gmtool.images import (
    AS_DISPLAYED,
    DecodedImage,
    Reading,
    UInt8Array,
    decode_image,
    displayed_size,
    open_image,
    read_regular_file,
)
from gmtool.masks.coco_annotations import CocoMask

Part = Literal["train", "val"]
PARTS: tuple[Part, ...] = ("train", "val")


@dataclass(frozen=True)
class Sample:
    """One image of a data set. `mask` is None where no mask may be looked at."""

    id: str
    """The image's path below the image folder without its suffix, however a list names it."""
    image_path: Path
    mask: Path | CocoMask | None
    """Its ground truth: a mask file, or annotations. `gmtool.data.ground_truth` reads both."""
    reading: Reading = AS_DISPLAYED

    def read_image(self) -> UInt8Array:
        """Return the image: RGB, uint8, (H, W, 3).

        Raises:
            ImageError: It cannot be read.
        """
        return self.decode().pixels

    def decode(self) -> DecodedImage:
        """Return the image, and what is to be said of how it was read.

        Raises:
            ImageError: It cannot be read.
        """
        content = read_regular_file(self.image_path)
        return decode_image(content, self.image_path, exif=self.reading.exif, bits=self.reading.bits)

    def image_size(self, image: Image.Image | None = None) -> tuple[int, int]:
        """Return (height, width) of what `read_image` gives, without decoding it.

        Args:
            image: The image, if it is open already.

        Raises:
            ImageError: It cannot be opened.
        """
        image = image or open_image(self.image_path)
        return displayed_size(image) if self.reading.exif else (image.height, image.width)


@dataclass(frozen=True)
class Layout:
    """What differs between data sets."""

    root: Path
    image_dir: Path
    """Folder that all images lie in or below."""
    mask_dir: Path | None
    """Folder that all masks lie in or below; None: masks are no files."""
    mask_of: Callable[[Path], Path | CocoMask]
    """From the path of one of `ids` to its mask."""
    ids: dict[Path, str]
    """Id by image."""
    aliases: dict[str, Path]
    """Image by every other name that lists have for it."""
    folders: tuple[str, ...]
    """What lists may leave out at the beginning of an id."""
    parts: dict[Part, tuple[str, list[SplitEntry]]]
    """Name and entries of the parts that the data set itself defines."""
    part_hints: dict[Part, str]
    """What a part would have been found in, for messages."""
    reading: Reading
    """How its images are read."""

    def samples(
        self, entries: Sequence[SplitEntry], *, with_masks: bool, where: str, missing_masks: bool = False
    ) -> tuple[Sample, ...]:
        """Return the images, and on request the masks, that the lines of a split list mean.

        Args:
            entries: The lines.
            with_masks: Whether the masks must be there; else nothing looks for one.
            where: The list, for messages.
            missing_masks: Name a mask file that does not exist too, for who lists it when it is read.

        Raises:
            DataError: An image or its mask does not exist, or several images could be meant.
        """
        images = self.aliases | {name: path for path, name in self.ids.items()}
        found = []
        for entry in entries:
            image_path = self._image_path(entry, images, where=where)
            mask = self._mask(entry, image_path, where=where, missing=missing_masks) if with_masks else None
            found.append(Sample(self.ids.get(image_path, entry.name), image_path, mask, self.reading))
        return tuple(found)

    def _image_path(self, entry: SplitEntry, images: dict[str, Path], *, where: str) -> Path:
        if entry.image is not None and (self.root / entry.image).is_file():
            return self.root / entry.image
        candidates = [entry.name, *(f"{folder}/{entry.name}" for folder in self.folders)]
        found = [images[name] for name in candidates if name in images]
        if not found:
            raise DataError(f"{where}: no image {entry.image or entry.name} below {self.image_dir}")
        if len(found) > 1:
            raise DataError(f"{where}: {entry.name} could be {found[0]} or {found[1]}: write its path")
        if not found[0].is_file():  # annotations may list more than there is
            raise DataError(f"{where}: image {found[0]} does not exist")
        return found[0]

    def _mask(self, entry: SplitEntry, image_path: Path, *, where: str, missing: bool) -> Path | CocoMask:
        if entry.mask is not None:
            return self._listed_mask(entry.mask, image_path, where=where, missing=missing)
        if image_path not in self.ids:
            raise DataError(f"{where}: {image_path} lies outside {self.image_dir}: name its mask beside it")
        mask = self.mask_of(image_path)
        if not isinstance(mask, Path):
            return mask
        found = mask_file(mask)
        if not (missing or found.is_file()):
            others = sorted(
                other.name for other in mask.parent.glob(f"{escape(mask.stem)}.*") if other != image_path
            )
            there = f", found {some_names(others)}" if others else ""
            raise DataError(f"{where}: image {image_path} has no mask: expected {mask}{there}")
        return found

    def _listed_mask(self, mask: str, image_path: Path, *, where: str, missing: bool) -> Path:
        if self.mask_dir is None:
            raise DataError(f"{where} names mask {mask}, but masks are taken from annotations: drop the column")
        mask_path = self.root / mask
        if not mask_path.is_relative_to(self.mask_dir):
            raise DataError(
                f"{where} names mask {mask}, but masks are taken from {self.mask_dir}: masks of two "
                f"folders are not mixed (--set data.mask_dir={Path(mask).parent})"
            )
        self._refuse_other_kind(mask_path, image_path, where=where)
        if not (missing or mask_path.is_file()):
            raise DataError(f"{where}: image {image_path} has no mask: expected {mask_path}")
        return mask_path

    def _refuse_other_kind(self, mask_path: Path, image_path: Path, *, where: str) -> None:
        """Refuse a listed labelIds file where labelTrainIds are read, and the other way round."""
        kinds = {"labelIds": "raw", "labelTrainIds": "index"}
        named = next((kind for kind in kinds if mask_path.stem.endswith(f"_{kind}")), None)
        own = self.mask_of(image_path) if image_path in self.ids else None
        if named is not None and isinstance(own, Path) and not own.stem.endswith(f"_{named}"):
            values = kinds[named]
            raise DataError(f"{where} names {mask_path.name}: --set data.mask_values={values} reads {named} files")


def mask_file(path: Path) -> Path:
    """Return the file of a mask: `path`, else the one beside it with another of `MASK_SUFFIXES` in any case.

    Raises:
        DataError: There are several.
    """
    if path.is_file():
        return path
    cases = (suffix for known in MASK_SUFFIXES for suffix in (known, known.upper(), known.title()))
    others = [other for other in map(path.with_suffix, cases) if other.is_file()]
    # A file system without case has one file under three names
    found = list({other.stat().st_ino: other for other in reversed(others)}.values())
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]} differ in their suffix alone: which is the mask?")
    return found[0] if found else path
