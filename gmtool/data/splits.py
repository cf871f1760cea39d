"""Split lists: one image a line, as id or path, with or without its mask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gmtool.errors import DataError
from gmtool.file_kinds import IMAGE_SUFFIXES


@dataclass(frozen=True)
class SplitEntry:
    """Line of a split list; paths are relative to the data set's root."""

    name: str
    """Id of the image, or its path without the suffix."""
    image: str | None
    """Path of the image; None if the line is an id."""
    mask: str | None
    """Path of the mask; None without a second column."""


def read_split(path: Path) -> list[SplitEntry]:
    """Read a split list: bare ids, paths, or two columns; a leading `/` and double slashes are dropped.

    Raises:
        DataError: The file cannot be read, is empty, a line has three columns, or an image occurs twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"split list {path}: cannot be read: {error}") from error
    entries = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        entry = _parse_line(line, where=f"{path}:{number}")
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


def _parse_line(line: str, *, where: str) -> SplitEntry:
    columns = line.split("\t") if "\t" in line else line.split()
    columns = [_relative(column, where=where) for column in columns if column.strip()]
    if len(columns) > 2:
        raise DataError(f"{where}: {len(columns)} columns; expected an image and, at most, its mask")
    image = columns[0]
    has_suffix = image.lower().endswith(IMAGE_SUFFIXES)
    return SplitEntry(
        name=str(PurePosixPath(image).with_suffix("")) if has_suffix else image,
        image=image if has_suffix else None,
        mask=columns[1] if len(columns) == 2 else None,
    )


def _relative(column: str, *, where: str) -> str:
    parts = [part for part in column.strip().split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise DataError(f"{where}: {column!r} is not a path inside the data set")
    return "/".join(parts)
