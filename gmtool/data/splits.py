"""Split lists: one image a line, as id or path, with or without its mask."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gmtool.errors import DataError, some_names
from gmtool.file_kinds import IMAGE_SUFFIXES, MASK_SUFFIXES

_IMAGE = "|".join(map(re.escape, IMAGE_SUFFIXES))
_MASK = "|".join(map(re.escape, MASK_SUFFIXES))
_TWO_PATHS = re.compile(rf"(?P<image>.*?\S(?:{_IMAGE}))(?:\s*[,;]\s*|\s+)(?P<mask>\S.*(?:{_MASK}))", re.IGNORECASE)
"""Path of an image and path of its mask; both may have spaces."""
_ID_AND_MASK = re.compile(rf"(?P<image>\S+)\s+(?P<mask>\S*/(?P=image)(?:{_MASK}))", re.IGNORECASE)
"""Id and the path of a mask of this name."""
_QUOTED = re.compile(r'"([^"]*)"')
HEADERS = ("image", "images", "image_path", "file", "file_name", "filename", "filepath", "path", "name", "id")
"""First column of a header, as spreadsheets write it."""


@dataclass(frozen=True)
class SplitEntry:
    """Line of a split list; paths are relative to the data set's root."""

    name: str
    """Id of the image, or its path without the suffix."""
    image: str | None
    """Path of the image; None if the line is an id."""
    mask: str | None
    """Path of the mask; None without a second column."""
    line: int = field(default=0, compare=False)
    """Number of the line; 0 if the entry is of no list."""


def read_split(path: Path) -> list[SplitEntry]:
    """Read a split list: ids or paths, or two columns; a leading `/` and double slashes are dropped.

    Columns are separated by tabs, or by spaces or a comma behind the suffix of an image, so that names may have
    spaces and commas. Text is UTF-8 or UTF-16; quotes, backslashes, lines that begin with `# ` and the header of a
    spreadsheet are understood.

    Raises:
        DataError: The file cannot be read, is empty, a line has three columns, or an image occurs twice.
    """
    entries = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip() or _is_comment(line) or (number == 1 and _is_header(line)):
            continue
        entry = _parse_line(line, number, where=f"{path}:{number}")
        if entry.name in seen:
            raise DataError(f"{path}:{number}: {entry.name} is already on line {seen[entry.name]}")
        seen[entry.name] = number
        entries.append(entry)
    if not entries:
        raise DataError(f"split list {path} is empty: expected one image a line")
    return entries


def format_split(ids: Iterable[str]) -> str:
    """Return ids as text for `read_split`; a tab after an id with spaces keeps it one column."""
    return "".join(f"{name}\t\n" if " " in name else f"{name}\n" for name in ids)


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"split list {path} is a folder: expected a text file with one image a line")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        others = sorted(other.name for other in path.parent.glob("*.txt")) if path.parent.is_dir() else []
        there = f"; {path.parent} has {some_names(others)}" if others else ""
        raise DataError(
            f"split list {path} does not exist: expected a text file with one image a line{there}"
        ) from error
    except OSError as error:
        raise DataError(f"split list {path}: cannot be read: {error.strerror or error}") from error
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"split list {path} is not text in UTF-8 or UTF-16: save it as UTF-8") from error
    if "\0" in text:
        raise DataError(f"split list {path} is not text in UTF-8: it has null bytes; save it as UTF-8")
    return text


def _is_comment(line: str) -> bool:
    return line.startswith("# ") and not line.rstrip().lower().endswith(IMAGE_SUFFIXES)


def _is_header(line: str) -> bool:
    columns = [column.strip(' "').lower() for column in re.split(r"[,;\t]", line)]
    return len(columns) > 1 and columns[0] in HEADERS


def _parse_line(line: str, number: int, *, where: str) -> SplitEntry:
    columns = [_relative(column, where=where) for column in _columns(line)]
    if len(columns) > 2:
        raise DataError(f"{where}: {len(columns)} columns; expected an image and, at most, its mask")
    image = columns[0]
    has_suffix = image.lower().endswith(IMAGE_SUFFIXES)
    return SplitEntry(
        name=str(PurePosixPath(image).with_suffix("")) if has_suffix else image,
        image=image if has_suffix else None,
        mask=columns[1] if len(columns) == 2 else None,
        line=number,
    )


def _columns(line: str) -> list[str]:
    text = line.strip()
    if "\t" in line:
        return [column.strip(' "') for column in line.split("\t") if column.strip()]
    quoted = _QUOTED.findall(text)
    if quoted and not _QUOTED.sub("", text).strip(" ,;"):
        return quoted
    match = _TWO_PATHS.fullmatch(text) or _ID_AND_MASK.fullmatch(text)
    return [match["image"], match["mask"]] if match else [text]


def _relative(column: str, *, where: str) -> str:
    parts = [part for part in column.replace("\\", "/").strip().split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise DataError(f"{where}: {column!r} is not a path inside the data set")
    return "/".join(parts)
