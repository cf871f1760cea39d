"""Which images are meant, and under which name each of their masks is written."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gmtool.coco import ImageId
from gmtool.errors import DataError
from gmtool.images import UInt8Array, read_image
from gmtool.splits import IMAGE_SUFFIXES
from gmtool_serving.video import read_frame


@dataclass(frozen=True, slots=True)
class InputImage:
    """An image, and under which name its mask goes. `str` of it names it in messages."""

    path: Path
    """The image's file, or the video."""
    output: PurePosixPath
    """Relative path below the output folder, without a format's suffix (`a/x`): unique in a run."""
    frame: int | None = None
    """Number of the frame in its video, from 0; None for an image file. `read_pixels` reads both."""
    coco_id: ImageId | None = None
    """The image's id in the COCO file that named it."""

    def __str__(self) -> str:
        """Return the file, and the frame if it is one."""
        return str(self.path) if self.frame is None else f"{self.path} frame {self.frame}"


def read_pixels(image: InputImage) -> UInt8Array:
    """Return the image or the frame: RGB, uint8, (H, W, 3).

    Raises:
        DataError: It cannot be read.
    """
    return read_image(image.path) if image.frame is None else read_frame(image.path, image.frame)


def collect_images(
    inputs: Sequence[str], out_dir: Path, *, root: Path | None = None, stride: int = 1
) -> list[InputImage]:
    """Find the images that files, folders (recursively) and globs name.

    A mask is named after its image's path below the folder (or the fixed part of the glob) that was given;
    with several folders, the folder's name stands before it. Images that differ in their suffix alone keep
    it: `x.jpg.png` and `x.png.png`. The result does not depend on the order of `inputs`.

    Args:
        inputs: Files (images, videos, COCO annotations `.json`), folders, globs, `@FILE` for a list in a file,
            `-` for a list on stdin.
        root: Where relative paths in lists and COCO files start, and what is taken off absolute ones; by
            default the folder of the file, for stdin the current folder.
        stride: Take every n-th frame of a video.
        out_dir: Where masks go; what lies there is never taken for an image.

    Raises:
        DataError: Something does not exist, there is no image, or two masks would have one name.
    """
    folders = [text for text in inputs if Path(text).is_dir()]
    found: dict[Path, PurePosixPath] = {}
    for text in inputs:
        for path, relative in _expand(text, out_dir.resolve()):
            prefix = Path(text).resolve().name if text in folders and len(folders) > 1 else ""
            found.setdefault(path, PurePosixPath(prefix) / relative)
    if not found:
        raise DataError(f"no images in {', '.join(inputs)}: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return _named(found)


def _expand(text: str, out_dir: Path) -> list[tuple[Path, PurePosixPath]]:
    path = Path(text)
    if path.is_dir():
        return _below(path, path, out_dir)
    if os.path.lexists(path):
        return [(path, PurePosixPath(path.name))]
    if not glob.has_magic(text):
        raise DataError(f"input {text}: no such file or folder")
    matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207  recursive
    if not matches:
        raise DataError(f"input {text}: nothing matches")
    root = Path(*_fixed_part(path))
    files: list[tuple[Path, PurePosixPath]] = []
    for match in matches:
        if match.is_dir():
            files += _below(match, root, out_dir) if "**" not in text else []
        elif match.suffix.lower() in IMAGE_SUFFIXES and not match.resolve().is_relative_to(out_dir):
            files.append((match, PurePosixPath(match.relative_to(root))))
    return files


def _below(folder: Path, root: Path, out_dir: Path) -> list[tuple[Path, PurePosixPath]]:
    files = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if (Path(parent) / name).resolve() != out_dir)
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                path = Path(parent) / name
                files.append((path, PurePosixPath(path.relative_to(root))))
    return files


def _fixed_part(pattern: Path) -> list[str]:
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts or ["."]


def _named(found: dict[Path, PurePosixPath]) -> list[InputImage]:
    # Without regard to case: some file systems have none
    short = {path: relative.with_suffix(".png") for path, relative in found.items()}
    counts = Counter(str(name).lower() for name in short.values())
    images = []
    for path, relative in found.items():
        name = short[path]
        images.append(
            InputImage(
                path, name if counts[str(name).lower()] == 1 else relative.with_name(f"{relative.name}.png")
            )
        )
    taken: dict[str, Path] = {}
    for image in images:
        other = taken.setdefault(str(image.output), image.path)
        if other != image.path:
            raise DataError(f"{other} and {image.path} would both become {image.output}: predict them apart")
    return sorted(images, key=lambda image: str(image.output))
