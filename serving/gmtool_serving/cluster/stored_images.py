"""Resolve URIs and lists to images in an object store with unique output names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gmtool.console import remark
from gmtool.errors import DataError, UsageError, some_names
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.folders import LeftOut, is_hidden
from gmtool.masks.coco_annotations import ImageId
from gmtool_serving.cluster.storage import check_uri, is_file, is_uri, join, list_files
from gmtool_serving.inputs.collect import InputImage, Source, name_sources
from gmtool_serving.inputs.lists import read_coco_names, read_list
from gmtool_serving.inputs.video import VIDEO_SUFFIXES

_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class StoredImage(InputImage):
    """Input image in an object store."""

    uri: str = ""

    @property
    def location(self) -> str:
        """Return the URI; `path` cannot hold one."""
        return self.uri

    def __str__(self) -> str:
        """Return the URI."""
        return self.uri


def collect_stored_images(inputs: Sequence[str], out: str, *, root: str | None = None) -> list[StoredImage]:
    """Collect the images of URIs (files, folders, globs) and of lists.

    Masks are named as by `collect_images`.

    Args:
        inputs: URIs of images, of folders (recursive) and globs of `*`, `?`, `[...]` and `**`; with `root` also
            local lists: `@FILE`, `-` for stdin, COCO annotations `.json`.
        out: Output folder, a path or a URI; files inside it are never inputs.
        root: Base URI of the names in lists.

    Raises:
        DataError: There is no image, or two masks would have the same name.
        UsageError: An input is neither a URI nor, with `root`, a list; or it is a video.
    """
    folders = [text for text in inputs if is_uri(text) and not _WILDCARD.search(text)]
    found: dict[str, tuple[PurePosixPath, ImageId | None]] = {}
    outside, left_out = out.rstrip("/") + "/", LeftOut()
    for text in inputs:
        prefix = PurePosixPath(text).name if text in folders and len(folders) > 1 else ""
        for uri, relative, coco_id in _expand(text, root, left_out):
            if uri.startswith(outside):
                continue
            name = PurePosixPath(prefix) / relative if prefix and relative.parent.parts else relative
            found[uri] = max(found.get(uri, (name, coco_id)), (name, coco_id), key=lambda n: len(n[0].parts))
    if not found:
        suffixes, there = ", ".join(IMAGE_SUFFIXES), f"; left out: {left_out}" if str(left_out) else ""
        raise DataError(
            f"no images in {some_names(inputs)}: expected files ending in {suffixes} outside {out}{there}"
        )
    if str(left_out):
        remark(f"left out: {left_out}")
    return _named(found)


def _named(found: dict[str, tuple[PurePosixPath, ImageId | None]]) -> list[StoredImage]:
    uris: dict[Path, str] = {}
    for uri in found:
        other = uris.setdefault(Path(uri), uri)
        if other is not uri:
            raise DataError(f"{other} and {uri} differ only in slashes and dots: predict them separately")
    sources = [Source(uri, str(name), coco_id) for uri, (name, coco_id) in found.items()]
    named = name_sources(sources, stride=1)
    return [StoredImage(image.path, image.output, None, image.coco_id, uris[image.path]) for image in named]


def _expand(text: str, root: str | None, left_out: LeftOut) -> Iterator[tuple[str, PurePosixPath, ImageId | None]]:
    if is_uri(text):
        check_uri(text)
        for uri, relative in _stored(text, left_out):
            yield uri, relative, None
    elif root is None:
        raise UsageError(f"input {text}: not a URI, unlike other inputs; a list of URIs needs --root URI")
    elif text == "-" or text.startswith("@"):
        for name in read_list(None if text == "-" else Path(text[1:])):
            yield *_below(name, root), None
    elif text.lower().endswith(".json"):
        for name, coco_id in read_coco_names(Path(text)):
            yield *_below(name, root), coco_id
    else:
        raise UsageError(f"input {text}: with a URI as --root, expected URIs, @FILE, - or COCO .json")


def _below(name: str, root: str) -> tuple[str, PurePosixPath]:
    """Return URI and path below the root of a list entry; the whole key if it is outside of the root."""
    uri = name if is_uri(name) else join(root, name.lstrip("/"))
    inside = root.rstrip("/") + "/"
    relative = uri.removeprefix(inside) if uri.startswith(inside) else uri.partition("://")[2]
    parts = [part for part in relative.split("/") if part not in ("", ".", "..")]
    return uri, PurePosixPath(*parts)


def _stored(uri: str, left_out: LeftOut) -> Iterator[tuple[str, PurePosixPath]]:
    try:
        if _WILDCARD.search(uri):
            yield from _matching(uri, left_out)
        elif uri.lower().endswith(VIDEO_SUFFIXES):
            raise UsageError(
                f"input {uri}: a video is decoded from its beginning on one machine: predict without --ray"
            )
        elif uri.lower().endswith(IMAGE_SUFFIXES) and is_file(uri):
            yield uri, PurePosixPath(uri.rpartition("/")[2])
        else:
            for file in list_files(uri):
                if _is_image(file.relative, left_out):
                    yield file.uri, PurePosixPath(file.relative)
    except OSError as error:
        raise DataError(f"input {uri}: cannot be listed: {error.strerror or error}") from error


def _matching(uri: str, left_out: LeftOut) -> Iterator[tuple[str, PurePosixPath]]:
    from fsspec.utils import glob_translate

    fixed = uri[: _WILDCARD.search(uri).start()].rpartition("/")[0]  # type: ignore[union-attr]  # there is one
    pattern = re.compile(glob_translate(uri[len(fixed) + 1 :]))
    for file in list_files(fixed):
        if pattern.match(file.relative) and _is_image(file.relative, left_out):
            yield file.uri, PurePosixPath(file.relative)


def _is_image(relative: str, left_out: LeftOut) -> bool:
    wanted = relative.lower().endswith(IMAGE_SUFFIXES)
    if any(map(is_hidden, relative.split("/"))):
        if wanted:
            left_out.hidden.append(relative)
        return False
    if not wanted:
        left_out.add_foreign(relative)
    return wanted
