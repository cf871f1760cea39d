"""Masks to be scored, whichever way they are kept: PNG, npz, or one COCO results file."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from gmtool.classes import ClassSet
from gmtool.coco_results import paint_results, read_coco_results
from gmtool.config import MaskValues
from gmtool.encodings import MEANINGS, Recognized, recognize_values
from gmtool.errors import DataError
from gmtool.images import UInt8Array
from gmtool.masks import read_mask
from gmtool.npz import read_npz

CITYSCAPES_NAME = re.compile(r"(?:.*/)?([^_/]+_\d{6}_\d{6})(?:_[^/]*)?")
"""City, sequence and frame; the official script matches predictions by them, whatever follows."""
CITYSCAPES_KINDS: dict[str, MaskValues] = {"_labelIds": "raw", "_labelTrainIds": "index", "_color": "color"}
"""What the ground truth of Cityscapes holds, by the end of its name; the first that is there is taken."""


@dataclass(frozen=True)
class MaskSource:
    """A set of masks that can be read by the name of their image."""

    path: Path
    """The folder or file that holds them."""
    description: str
    """How they are encoded, and how that is known."""
    names: tuple[str, ...]
    """Names of the masks, sorted: paths below the folder without suffix, or image ids."""
    _places: dict[str, list[str]]
    """Names by what they are matched with."""
    _read: Callable[[str, tuple[int, int] | None], UInt8Array]

    def find(self, image: str) -> str:
        """Return the name of the mask of an image.

        Raises:
            DataError: There is none, or there are several.
        """
        found = next((self._places[key] for key in _keys_of_image(image) if key in self._places), [])
        if not found:
            raise DataError(f"no mask of it in {self.path}")
        if len(found) > 1:
            raise DataError(f"{self.path} has two masks of it: {found[0]} and {found[1]}")
        return found[0]

    def read(self, name: str, *, expected: tuple[int, int] | None = None) -> UInt8Array:
        """Return a label map, (H, W) uint8 of class indices and the ignore index.

        Args:
            name: One of `names`.
            expected: (height, width) of its ground truth; an npz file or a COCO result of another size is refused
                before it is decoded.

        Raises:
            DataError: It cannot be read, or holds something that is none of the classes.
        """
        return self._read(name, expected)


def open_masks(path: Path, classes: ClassSet, values: MaskValues | None, *, option: str) -> MaskSource:
    """Find masks and recognise how they are encoded. Nothing is decoded but a few files to look at.

    Args:
        path: A folder of PNG (class indices, raw ids or colours) or of `.npz` files with a `mask` of class
            indices, or a COCO results file.
        classes: What the labels may be.
        values: What the pixels of PNG files are; None to recognise it.
        option: The option that says so, for messages.

    Raises:
        DataError: There are no masks, or it is not sure what they hold.
    """
    if path.is_file() and path.suffix == ".json":
        return _open_coco(path, classes)
    if not path.is_dir():
        raise DataError(f"masks {path}: no such folder, nor a .json file of COCO results")
    pngs, archives = sorted(path.rglob("*.png")), sorted(path.rglob("*.npz"))
    if pngs and archives:
        raise DataError(f"{path} has PNG and npz files in it: give a folder of one of them")
    if archives:
        return _folder_source(path, archives, "npz with class indices", partial(read_npz, classes=classes))
    if not pngs:
        inside = sorted(path.glob("*.json"))
        if len(inside) == 1:
            return _open_coco(inside[0], classes)
        raise DataError(f"{path}: no masks in it; expected PNG or npz files, or one .json of COCO results")
    pngs, known = _choose_kind(pngs, values)
    if known is None:
        known = recognize_values(pngs, classes, where=path, option=option)
    description = f"PNG with {MEANINGS[known.values]} ({known.reason})"
    return _folder_source(path, pngs, description, lambda file, _: read_mask(file, classes, values=known.values))


def image_key(image: str) -> str:
    """Return what an image is matched by: city, sequence and frame in Cityscapes, else its whole name."""
    match = CITYSCAPES_NAME.fullmatch(image)
    return match[1] if match else image


def _keys_of_image(image: str) -> list[str]:
    """Return what the mask of an image may be called: its path, or its last parts, or its number."""
    parts = image.split("/")
    keys = [image_key(image), *("/".join(parts[start:]) for start in range(len(parts)))]
    return [*keys, str(int(parts[-1]))] if parts[-1].isascii() and parts[-1].isdigit() else keys


def _choose_kind(paths: list[Path], values: MaskValues | None) -> tuple[list[Path], Recognized | None]:
    """Return the files of one kind, where the ground truth of Cityscapes lies side by side, and what they hold."""
    said = None if values is None else Recognized(values, "as asked for")
    for ending, kind in CITYSCAPES_KINDS.items():
        chosen = [path for path in paths if path.stem.endswith(ending)]
        if chosen and values in (None, kind):
            return chosen, said or Recognized(kind, f"named {ending[1:]}")
    return paths, said


def _folder_source(
    folder: Path, paths: list[Path], description: str, read: Callable[[Path, tuple[int, int] | None], UInt8Array]
) -> MaskSource:
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
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
