"""Masks to score: folders of PNG or npz files, or one COCO results file."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath

from gmtool.classes import ClassSet
from gmtool.config import MaskValues
from gmtool.console import remark
from gmtool.errors import DataError
from gmtool.file_kinds import MASK_SUFFIXES
from gmtool.folders import LeftOut, below
from gmtool.images import UInt8Array
from gmtool.masks.coco_results import paint_results, read_coco_results
from gmtool.masks.encodings import MEANINGS, Recognized, recognize_values
from gmtool.masks.files import read_mask
from gmtool.masks.npz import read_npz

CITYSCAPES_NAME = re.compile(r"(?:.*/)?([^_/]+_\d{6}_\d{6})(?:_[^/]*)?")
"""City, sequence and frame, by which the official script matches predictions."""
CITYSCAPES_KINDS: dict[str, MaskValues] = {"_labelIds": "raw", "_labelTrainIds": "index", "_color": "color"}
"""Encoding of Cityscapes ground truth by the end of its file name; the first that exists is used."""
JPEG_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif"}


@dataclass(frozen=True)
class MaskSource:
    """Masks, found and read by the name of their image."""

    path: Path
    """Folder or file of the masks."""
    description: str
    """Encoding of the masks, and the reason."""
    names: tuple[str, ...]
    """Sorted names of the masks: paths below the folder without suffix, or image ids."""
    _places: dict[str, list[str]]
    """Names of the masks by the key that images are matched with."""
    _read: Callable[[str, tuple[int, int] | None], UInt8Array]

    def find(self, image: str) -> str:
        """Return the name of the mask of an image.

        Raises:
            DataError: No mask, or several masks.
        """
        found = next((self._places[key] for key in _keys_of_image(image) if key in self._places), [])
        if not found:
            raise DataError(f"no mask in {self.path}")
        if len(found) > 1:
            raise DataError(f"{self.path} has two masks: {found[0]} and {found[1]}")
        return found[0]

    def read(self, name: str, *, expected: tuple[int, int] | None = None) -> UInt8Array:
        """Return a label map, (H, W) uint8 of class indices and the ignore index.

        Args:
            name: One of `names`.
            expected: (height, width) of its ground truth; npz files and COCO results of another size are refused
                before decoding.

        Raises:
            DataError: The mask cannot be read, or has a label outside the classes.
        """
        return self._read(name, expected)


def open_masks(path: Path, classes: ClassSet, values: MaskValues | None, *, option: str) -> MaskSource:
    """Find masks and recognise their encoding from a few of them; hidden files are skipped.

    Args:
        path: Folder of PNG, TIFF, BMP or GIF files (class indices, raw ids or colours) or of `.npz` files with an
            array `mask` of class indices, or a COCO results file.
        classes: Classes of the labels.
        values: Encoding of image files; None: recognise it.
        option: Option that sets the encoding, for messages.

    Raises:
        DataError: No masks, or an ambiguous encoding.
    """
    if path.is_file() and path.suffix == ".json":
        return _open_coco(path, classes)
    if not path.is_dir():
        raise DataError(f"masks {path}: no such folder, nor a .json file of COCO results")
    # Files of the folder
    left_out = LeftOut()
    found = [path / name for name in below(path, suffixes=(*MASK_SUFFIXES, ".npz", ".json"), left_out=left_out)]
    if left_out.hidden:
        remark(f"left out below {path}: {left_out}")
    images = [file for file in found if file.suffix.lower() in MASK_SUFFIXES]
    archives = [file for file in found if file.suffix.lower() == ".npz"]
    if images and archives:
        raise DataError(f"{path} has {_type_of(images[0])} and npz files in it: give a folder of one of them")
    # npz files, or one COCO results file
    if archives:
        return _folder_source(path, archives, "npz with class indices", partial(read_npz, classes=classes))
    if not images:
        inside = [file for file in found if file.suffix.lower() == ".json" and file.parent == path]
        if len(inside) == 1:
            return _open_coco(inside[0], classes)
        raise DataError(_no_masks(path))
    # Image files and their encoding
    images, known = _choose_kind(images, values)
    if known is None:
        known = recognize_values(images, classes, where=path, option=option)
    types = sorted({_type_of(file) for file in images})
    description = f"{' and '.join(types)} with {MEANINGS[known.values]} ({known.reason})"
    return _folder_source(path, images, description, lambda file, _: read_mask(file, classes, values=known.values))


def _type_of(file: Path) -> str:
    name = file.suffix[1:].upper()
    return "TIFF" if name == "TIF" else name


def _no_masks(folder: Path) -> str:
    """Return the error message for a folder without masks: the suffixes found and expected."""
    every = below(folder, suffixes=("",))
    kinds = Counter(PurePath(file).suffix.lower() or "without a suffix" for file in every)
    there = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "no file"
    line = (
        f"{folder}: no masks in it, but {there}; expected PNG, TIFF, BMP, GIF or npz files, "
        "or one .json of COCO results"
    )
    return f"{line}; JPEG changes labels: save masks as PNG" if kinds.keys() & JPEG_SUFFIXES else line


def image_key(image: str) -> str:
    """Return the key of an image: city, sequence and frame in Cityscapes, else its name."""
    match = CITYSCAPES_NAME.fullmatch(image)
    return match[1] if match else image


def _keys_of_image(image: str) -> list[str]:
    """Return the possible names of an image's mask: its path, the last parts of it, or its number."""
    parts = image.split("/")
    keys = [image_key(image), *("/".join(parts[start:]) for start in range(len(parts)))]
    return [*keys, str(int(parts[-1]))] if parts[-1].isascii() and parts[-1].isdigit() else keys


def _choose_kind(paths: list[Path], values: MaskValues | None) -> tuple[list[Path], Recognized | None]:
    """Return the files of one Cityscapes kind and their encoding, if several kinds are in one folder."""
    said = None if values is None else Recognized(values, "as asked for")
    for ending, kind in CITYSCAPES_KINDS.items():
        chosen = [path for path in paths if path.stem.endswith(ending)]
        if chosen and values in (None, kind):
            return chosen, said or Recognized(kind, f"named {ending[1:]}")
    return paths, said


def _folder_source(
    folder: Path, paths: list[Path], description: str, read: Callable[[Path, tuple[int, int] | None], UInt8Array]
) -> MaskSource:
    files: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if files.setdefault(name, path) != path:
            raise DataError(f"{files[name]} and {path} differ only in their suffix: keep one mask of {name}")
    places: dict[str, list[str]] = defaultdict(list)
    for name in files:
        places[image_key(name)].append(name)
    return MaskSource(
        folder, description, tuple(files), dict(places), lambda name, expected: read(files[name], expected)
    )


def _open_coco(path: Path, classes: ClassSet) -> MaskSource:
    results = read_coco_results(path)
    by_name = {str(image_id): entries for image_id, entries in results.items()}

    def read(name: str, expected: tuple[int, int] | None) -> UInt8Array:
        return paint_results(by_name[name], classes, where=f"{path} image {name}", expected=expected)

    places = {
        image_key(str(PurePosixPath(name).with_suffix("")) if "." in name else name): [name] for name in by_name
    }
    return MaskSource(path, "COCO results (RLE, category ids)", tuple(sorted(by_name)), places, read)
