"""Resolve inputs to images with unique output names."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path, PurePosixPath

from gmtool.console import remark
from gmtool.errors import DataError, some_names
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.folders import LeftOut, below
from gmtool.images import UInt8Array, read_image
from gmtool.masks.coco_annotations import ImageId
from gmtool_serving.inputs.folders import matching
from gmtool_serving.inputs.lists import read_coco_names, read_list, root_of_coco
from gmtool_serving.inputs.video import VIDEO_SUFFIXES, count_frames, read_frame

FRAME_DIGITS = 6


@dataclass(frozen=True, slots=True)
class InputImage:
    """Input image or video frame with its output name. `str` of it is its name in messages."""

    path: Path
    """Image file, or video."""
    output: PurePosixPath
    """Relative path below the output folder without a suffix (`a/x`); unique in a run."""
    frame: int | None = None
    """Frame number in the video, from 0; None for an image file. `read_pixels` reads both."""
    coco_id: ImageId | None = None
    """Image id in the COCO file that lists it."""

    @property
    def location(self) -> str:
        """Return the path as text, as in manifests."""
        return str(self.path)

    def __str__(self) -> str:
        """Return the path, with the frame number of a video frame."""
        return str(self.path) if self.frame is None else f"{self.path} frame {self.frame}"


@dataclass(frozen=True, slots=True)
class Source:
    """Input file and its path below its root. `str`, which is ten times faster than `Path` here."""

    path: str
    relative: str
    coco_id: ImageId | None = None


def read_pixels(image: InputImage) -> UInt8Array:
    """Read an image or a video frame: RGB, (H, W, 3) uint8.

    Raises:
        DataError: It cannot be read.
    """
    return read_image(image.path) if image.frame is None else read_frame(image.path, image.frame)


def collect_images(
    inputs: Sequence[str], out_dir: Path, *, root: Path | None = None, stride: int = 1
) -> list[InputImage]:
    """Collect the images of files, folders (recursively), globs and lists.

    A mask is named after its image's path below the given folder (or the fixed part of the glob), or after its
    path in a list; with several folders, the folder's name comes first. A list entry outside of the list's root
    gets its absolute path without the leading slash, so that every mask lies in the output folder. Lists may omit
    suffixes. Frames are named `x_000123`. Images that differ only in their suffix keep it: `x.jpg` and `x.png`.
    The result does not depend on the order of `inputs`. Images of a list need not exist: reading such an image
    fails later.

    Args:
        inputs: Files (images, videos, COCO annotations `.json`), folders, globs, `@FILE` for a list in a file,
            `-` for a list on stdin. Folders are searched for images only, without hidden ones; videos must be
            named or matched by a glob.
        out_dir: Output folder; files inside it are never inputs.
        root: Base of relative paths in lists and COCO files, removed from absolute ones; default: the folder of
            the file, or the current folder for stdin.
        stride: Take every n-th frame of a video, from the first.

    Raises:
        DataError: An input does not exist, there is no image, two masks would have the same name, or a video
            cannot be opened.
        MissingExtraError: There is a video, but PyAV is not installed.
    """
    # Find files; one that several inputs name is kept once
    folders = [text for text in inputs if Path(text).is_dir()]
    is_output = _output_test(out_dir)
    found: dict[str, Source] = {}
    own_outputs, left_out = 0, LeftOut()
    for text in inputs:
        prefix = Path(text).resolve().name if text in folders and len(folders) > 1 else ""
        for source in _expand(text, root, out_dir.resolve(), left_out):
            if is_output(source.path):
                own_outputs += 1
                continue
            named = replace(source, relative=f"{prefix}/{source.relative}") if prefix else source
            other = found.get(source.path)
            found[source.path] = max(other, named, key=_rank) if other else named
    # Refuse empty inputs, report skipped files
    if not found and own_outputs:
        raise DataError(f"all {own_outputs} images lie in the output folder {out_dir}: choose another --out")
    if not found:
        raise DataError(_nothing_in(inputs, folders, out_dir.resolve(), left_out))
    if str(left_out):
        remark(f"left out: {left_out}")
    return name_sources(list(found.values()), stride=stride)


def _rank(source: Source) -> tuple[bool, int, str]:
    """Return the sort key that picks one of several names of a file: COCO's first, then the longest path."""
    return source.coco_id is not None, source.relative.count("/"), source.relative


def _nothing_in(inputs: Sequence[str], folders: Sequence[str], out_dir: Path, left_out: LeftOut) -> str:
    for folder in folders:
        for video in below(Path(folder), suffixes=VIDEO_SUFFIXES, excluded=out_dir):
            return f"no images in {folder}, but videos: give them by name ({folder}/*{Path(video).suffix})"
    there = f"; left out: {left_out}" if str(left_out) else ""
    return f"no images in {some_names(inputs)}: expected files ending in {', '.join(IMAGE_SUFFIXES)}{there}"


def _expand(text: str, root: Path | None, out_dir: Path, left_out: LeftOut) -> Iterator[Source]:
    path = Path(text)
    if os.path.lexists(path) and (path if path.is_dir() else path.parent).resolve().is_relative_to(out_dir):
        raise DataError(f"input {text} lies in the output folder: choose another --out")
    if text == "-":
        yield from _listed(read_list(None), root or Path())
    elif text.startswith("@") and not os.path.lexists(text):
        path = Path(text[1:])
        yield from _listed(read_list(path), root or path.parent)
    elif path.is_dir():
        for name in below(path, suffixes=IMAGE_SUFFIXES, excluded=out_dir, left_out=left_out):
            yield Source(os.path.join(path, name), _posix(name))  # noqa: PTH118
    elif path.suffix.lower() == ".json":
        named = read_coco_names(path)
        folder = root or root_of_coco(path, named[0][0])
        sources = _listed([name for name, _ in named], folder)
        for source, (_, coco_id) in zip(sources, named, strict=True):
            yield Source(source.path, source.relative, coco_id)
    elif os.path.lexists(path):
        yield Source(str(path), path.name)
    else:
        suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        for file, relative in matching(text, out_dir, suffixes=suffixes, left_out=left_out):
            yield Source(file, _posix(relative))


def _listed(names: Sequence[str], root: Path) -> Iterator[Source]:
    """Yield the entries of a list, with output names that stay inside the output folder."""
    absolute_root = os.path.abspath(root)  # noqa: PTH100  no links followed: names count
    inside = os.path.join(absolute_root, "")  # noqa: PTH118
    for entry in names:
        name = entry if entry.lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES) else _image_of_id(entry, root)
        if "\\" in name and not os.path.lexists(os.path.join(root, name)):  # noqa: PTH118
            name = name.replace("\\", "/")  # a list made on Windows
        full = os.path.normpath(os.path.join(absolute_root, name))  # noqa: PTH118
        if full.startswith(inside):
            relative = full[len(inside) :]
        else:
            drive, rest = os.path.splitdrive(full)
            relative = f"{drive}{rest}".replace(":", "").strip("/\\") or "root"
        yield Source(os.path.join(root, name), _posix(relative))  # noqa: PTH118


def _image_of_id(name: str, root: Path) -> str:
    """Return the image file of an id without suffix; a file of exactly that name comes first."""
    candidates = [name, *(name + suffix for suffix in IMAGE_SUFFIXES)]
    return next((one for one in candidates if os.path.lexists(os.path.join(root, one))), name)  # noqa: PTH118


def _posix(relative: str) -> str:
    return relative.replace(os.sep, "/") if os.sep != "/" else relative


def _output_test(out_dir: Path) -> Callable[[str], bool]:
    out = out_dir.resolve()

    @cache
    def is_output_folder(folder: str) -> bool:
        return Path(folder).resolve().is_relative_to(out)

    return lambda path: is_output_folder(os.path.dirname(path))  # noqa: PTH120


def name_sources(sources: Sequence[Source], *, stride: int) -> list[InputImage]:
    """Return images and frames with unique output names; suffixes are kept where names would clash."""
    frames = [_frames_of(source.path, stride) for source in sources]
    keeping: set[int] = set()
    while True:
        names = [
            (name if frame is None else f"{name}_{frame:0{FRAME_DIGITS}}", index, frame)
            for index, source in enumerate(sources)
            for name in (source.relative if index in keeping else posixpath.splitext(source.relative)[0],)
            for frame in frames[index]
        ]
        # Case-insensitive, as some file systems are
        counts = Counter(name.lower() for name, _, _ in names)
        more = {index for name, index, _ in names if counts[name.lower()] > 1} - keeping
        if not more:
            break
        keeping |= more
    names.sort()
    for (name, index, _), (next_name, next_index, _) in pairwise(names):
        if name == next_name:
            first, second = sources[index].path, sources[next_index].path
            raise DataError(f"{first} and {second} would both become {name}: predict them separately")
    images = [(sources[index], name, frame) for name, index, frame in names]
    return [InputImage(Path(one.path), PurePosixPath(name), frame, one.coco_id) for one, name, frame in images]


def _frames_of(path: str, stride: int) -> Sequence[int | None]:
    """Return the frame numbers of a video, (None,) for an image; (0,) for a damaged video, whose reading fails."""
    if not path.lower().endswith(VIDEO_SUFFIXES):
        return (None,)
    try:
        return range(0, count_frames(Path(path)), stride) or (0,)
    except DataError:
        return (0,)
