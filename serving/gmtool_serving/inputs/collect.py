"""Which images are meant, and under which name each of their masks is written."""

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
    """An image, and under which name its mask goes. `str` of it names it in messages."""

    path: Path
    """The image's file, or the video."""
    output: PurePosixPath
    """Relative path below the output folder, without a format's suffix (`a/x`): unique in a run."""
    frame: int | None = None
    """Number of the frame in its video, from 0; None for an image file. `read_pixels` reads both."""
    coco_id: ImageId | None = None
    """The image's id in the COCO file that named it."""

    @property
    def location(self) -> str:
        """Return where its file is, as manifests have it."""
        return str(self.path)

    def __str__(self) -> str:
        """Return the file, and the frame if it is one."""
        return str(self.path) if self.frame is None else f"{self.path} frame {self.frame}"


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was found. Text, because a hundred thousand of them are ten times faster than `Path`."""

    path: str
    relative: str
    coco_id: ImageId | None = None


def read_pixels(image: InputImage) -> UInt8Array:
    """Return the image or the frame: RGB, uint8, (H, W, 3).

    Raises:
        DataError: It cannot be read.
    """
    return read_image(image.path) if image.frame is None else read_frame(image.path, image.frame)


def collect_images(
    inputs: Sequence[str], out_dir: Path, *, root: Path | None = None, stride: int = 1
) -> list[InputImage]:
    """Find the images that files, folders (recursively), globs and lists name.

    A mask is named after its image's path below the folder (or the fixed part of the glob) that was given,
    or after its path in a list; with several folders, the folder's name stands before it. A path that leads
    out of a list's root becomes the absolute path without its leading slash, so that every mask lies in the
    output folder. A list may name images without their suffix. Frames are `x_000123`. Images that differ in
    their suffix alone keep it: `x.jpg` and `x.png`. The result does not depend on the order of `inputs`. What
    a list names need not exist: reading it fails then, for this image alone.

    Args:
        inputs: Files (images, videos, COCO annotations `.json`), folders, globs, `@FILE` for a list in a file,
            `-` for a list on stdin. Folders give images alone, not hidden ones; videos are named, or matched by a
            glob.
        out_dir: Where masks go; what lies there is never taken for an image.
        root: Where relative paths in lists and COCO files start, and what is taken off absolute ones; by
            default the folder of the file, for stdin the current folder.
        stride: Take every n-th frame of a video, from the first.

    Raises:
        DataError: Something does not exist, there is no image, two masks would have one name, or a video
            cannot be opened.
        MissingExtraError: There is a video, but PyAV is not installed.
    """
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
    if not found and own_outputs:
        raise DataError(
            f"all {own_outputs} images lie in the output folder {out_dir}: choose another one for masks"
        )
    if not found:
        raise DataError(_nothing_in(inputs, folders, out_dir.resolve(), left_out))
    if str(left_out):
        remark(f"left out: {left_out}")
    return name_sources(list(found.values()), stride=stride)


def _rank(source: Source) -> tuple[bool, int, str]:
    """Of two names of one file, take the same whatever the order: COCO's, else the longer path."""
    return source.coco_id is not None, source.relative.count("/"), source.relative


def _nothing_in(inputs: Sequence[str], folders: Sequence[str], out_dir: Path, left_out: LeftOut) -> str:
    for folder in folders:
        for video in below(Path(folder), suffixes=VIDEO_SUFFIXES, excluded=out_dir):
            return f"no images in {folder}, but videos: name them ({folder}/*{Path(video).suffix})"
    there = f"; left out: {left_out}" if str(left_out) else ""
    return f"no images in {some_names(inputs)}: expected files ending in {', '.join(IMAGE_SUFFIXES)}{there}"


def _expand(text: str, root: Path | None, out_dir: Path, left_out: LeftOut) -> Iterator[Source]:
    path = Path(text)
    if os.path.lexists(path) and (path if path.is_dir() else path.parent).resolve().is_relative_to(out_dir):
        raise DataError(f"input {text} lies in the output folder: choose another --out for the masks")
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
    """Return what a list names, with outputs that stay inside the output folder whatever it says."""
    absolute_root = os.path.abspath(root)  # noqa: PTH100  without following links: names are what is asked for
    inside = os.path.join(absolute_root, "")  # noqa: PTH118
    for entry in names:
        name = entry if entry.lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES) else _image_of_id(entry, root)
        full = os.path.normpath(os.path.join(absolute_root, name))  # noqa: PTH118
        if full.startswith(inside):
            relative = full[len(inside) :]
        else:
            drive, rest = os.path.splitdrive(full)
            relative = f"{drive}{rest}".replace(":", "").strip("/\\") or "root"
        yield Source(os.path.join(root, name), _posix(relative))  # noqa: PTH118


def _image_of_id(name: str, root: Path) -> str:
    """Return the file that a bare id, as benchmarks list them, stands for; a file of that very name goes first."""
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
    """Give every image a name of its own: without its suffix where that is enough, else with it."""
    frames = [_frames_of(source.path, stride) for source in sources]
    keeping: set[int] = set()
    while True:
        names = [
            (name if frame is None else f"{name}_{frame:0{FRAME_DIGITS}}", index, frame)
            for index, source in enumerate(sources)
            for name in (source.relative if index in keeping else posixpath.splitext(source.relative)[0],)
            for frame in frames[index]
        ]
        # Without regard to case: some file systems have none
        counts = Counter(name.lower() for name, _, _ in names)
        more = {index for name, index, _ in names if counts[name.lower()] > 1} - keeping
        if not more:
            break
        keeping |= more
    names.sort()
    for (name, index, _), (next_name, next_index, _) in pairwise(names):
        if name == next_name:
            first, second = sources[index].path, sources[next_index].path
            raise DataError(f"{first} and {second} would both become {name}: predict them apart")
    images = [(sources[index], name, frame) for name, index, frame in names]
    return [InputImage(Path(one.path), PurePosixPath(name), frame, one.coco_id) for one, name, frame in images]


def _frames_of(path: str, stride: int) -> Sequence[int | None]:
    """Return the numbers of a video's frames; a video that cannot be opened has one, whose reading says why."""
    if not path.lower().endswith(VIDEO_SUFFIXES):
        return (None,)
    try:
        return range(0, count_frames(Path(path)), stride) or (0,)
    except DataError:
        return (0,)
