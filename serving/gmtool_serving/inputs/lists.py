"""Read lists of images: text files, stdin, COCO annotation files."""

from __future__ import annotations

import codecs
import os
import re
import sys
from pathlib import Path
from typing import Any

from gmtool.errors import DataError
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.json_toml import read_json, shown
from gmtool.masks.coco_annotations import ImageId
from gmtool_serving.inputs.video import VIDEO_SUFFIXES

_SUFFIXES = tuple(suffix.encode() for suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
_QUOTED = re.compile(rb'"([^"]+)"\s*(?:[,;].*)?')
"""Quoted name, and columns behind it, as spreadsheets write them."""
IMAGE_FOLDERS = ("{part}", "images/{part}", "images")
"""Candidate folders, beside `annotations`, of the images of `annotations/instances_PART.json`."""


def read_list(path: Path | None) -> list[str]:
    """Return the names in a list: separated by NUL if it contains one, else one a line; blank ones are dropped.

    A name is the whole line, spaces included, up to the first tab, or what is between its quotes. Lines that begin
    with `# ` and name no image or video are comments. Bytes that are not UTF-8 become surrogate escapes, as in
    Python's file names.

    Args:
        path: Text file; None for stdin.

    Raises:
        DataError: It cannot be read or is empty.
    """
    try:
        content = sys.stdin.buffer.read() if path is None else path.read_bytes()
    except OSError as error:
        raise DataError(f"list {path or 'on stdin'}: cannot be read: {error.strerror}") from error
    content = _as_utf8(content)
    if b"\0" in content:
        names = content.split(b"\0")
    else:
        columns = [line.partition(b"\t")[0].rstrip(b"\r") for line in content.split(b"\n")]
        names = [_unquoted(column) for column in columns if not _is_comment(column)]
    found = [os.fsdecode(name) for name in names if name.strip()]
    if not found:
        raise DataError(f"list {path or 'on stdin'} is empty: expected one image a line")
    return found


def _is_comment(column: bytes) -> bool:
    return column.startswith(b"# ") and not column.rstrip().lower().endswith(_SUFFIXES)


def _unquoted(column: bytes) -> bytes:
    quoted = _QUOTED.fullmatch(column.strip())
    return quoted[1] if quoted else column


def read_coco_names(path: Path) -> list[tuple[str, ImageId]]:
    """Return file name and id of each image in a COCO annotation file.

    Raises:
        DataError: Not a COCO annotation file, or an image without or with a repeated id or file name.
    """
    # Polygons are most of the file: their numbers stay text
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
    """Return the folder of the images of a COCO file, found by the first image.

    The file's own folder, or, for `annotations/instances_val2017.json`, `val2017`, `images/val2017` or `images`
    beside `annotations`.
    """
    part = path.stem.rpartition("_")[2]
    beside = [path.parent.parent / folder.format(part=part) for folder in IMAGE_FOLDERS]
    return next((folder for folder in (path.parent, *beside) if os.path.lexists(folder / first)), path.parent)


def _slim(value: dict[str, Any]) -> dict[str, Any] | tuple[Any, Any] | None:
    """Keep only id and file name of each image: annotations are a hundred times as large."""
    if "images" in value:
        return value
    return (value.get("id"), value.get("file_name")) if "file_name" in value else None


def _as_utf8(content: bytes) -> bytes:
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if content.startswith(mark):  # PowerShell's redirection
            return content.decode(encoding, "surrogateescape").encode("utf-8", "surrogateescape")
    return content.removeprefix(codecs.BOM_UTF8)
