"""Which images a list names: lines in a file or on stdin, or the images of a COCO file."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path
from typing import Any

from gmtool.errors import DataError
from gmtool.json_toml import read_json, shown
from gmtool.masks.coco_annotations import ImageId

IMAGE_FOLDERS = ("{part}", "images/{part}", "images")
"""Where the images of `annotations/instances_PART.json` are, beside `annotations`."""


def read_list(path: Path | None) -> list[str]:
    """Return the names in a list: separated by NUL if there is one in it, else one a line; blank ones are dropped.

    A name is the whole line, spaces included; where a line has a tab, what stands before it. Bytes that are
    not UTF-8 are kept as Python keeps them in file names (surrogateescape).

    Args:
        path: The list; None for stdin.

    Raises:
        DataError: It cannot be read or names nothing.
    """
    try:
        content = sys.stdin.buffer.read() if path is None else path.read_bytes()
    except OSError as error:
        raise DataError(f"list {path or 'on stdin'}: cannot be read: {error.strerror}") from error
    content = _as_utf8(content)
    if b"\0" in content:
        names = content.split(b"\0")
    else:
        names = [line.partition(b"\t")[0].rstrip(b"\r") for line in content.split(b"\n")]
    found = [os.fsdecode(name) for name in names if name.strip()]
    if not found:
        raise DataError(f"list {path or 'on stdin'} is empty: expected one image a line")
    return found


def read_coco_names(path: Path) -> list[tuple[str, ImageId]]:
    """Return file name and id of each image of a COCO file; annotations and categories are not kept.

    Raises:
        DataError: Not such a file, or an image without an id or a file name, or with those of another.
    """
    # Polygons are most of such a file: their numbers stay text
    value = read_json(path, what="a COCO annotation file", any_number=True, object_hook=_slim, parse_float=str)
    images = value.get("images") if isinstance(value, dict) else None
    if not isinstance(images, list) or not images:
        raise DataError(f'{path}: not a COCO annotation file: expected a list "images"')
    found: dict[ImageId, str] = {}
    ids: dict[str, ImageId] = {}
    for image in images:
        image_id, name = image if isinstance(image, tuple) else (None, None)
        if not (type(image_id) in (int, str) and isinstance(name, str) and name):
            raise DataError(f"{path}: an image has no id or no file_name: {shown(image_id)}, {shown(name)}")
        if image_id in found:
            raise DataError(f"{path}: {found[image_id]} and {name} have the same id {image_id!r}")
        if name in ids:
            raise DataError(f"{path}: images {ids[name]!r} and {image_id!r} have the same file {name}")
        found[image_id], ids[name] = name, image_id
    return [(name, image_id) for image_id, name in found.items()]


def root_of_coco(path: Path, first: str) -> Path:
    """Return the folder in which the images of a COCO file lie, judged by the first of them.

    Its own folder; else, for `annotations/instances_val2017.json`, `val2017`, `images/val2017` or `images`
    beside `annotations`.
    """
    part = path.stem.rpartition("_")[2]
    beside = [path.parent.parent / folder.format(part=part) for folder in IMAGE_FOLDERS]
    return next((folder for folder in (path.parent, *beside) if os.path.lexists(folder / first)), path.parent)


def _slim(value: dict[str, Any]) -> dict[str, Any] | tuple[Any, Any] | None:
    """Keep of each object in the file what is asked for: annotations are a hundred times as much."""
    if "images" in value:
        return value
    return (value.get("id"), value.get("file_name")) if "file_name" in value else None


def _as_utf8(content: bytes) -> bytes:
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if content.startswith(mark):  # PowerShell's redirection
            return content.decode(encoding, "surrogateescape").encode("utf-8", "surrogateescape")
    return content.removeprefix(codecs.BOM_UTF8)
