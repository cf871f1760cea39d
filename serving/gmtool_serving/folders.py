"""Which files a folder or a glob holds, whatever links lie in it."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from gmtool.errors import DataError


def below(folder: Path, out_dir: Path | None, *, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Return the files in a folder and below it whose name ends in one of `suffixes`, in any case.

    Links are followed, but not a link to a folder that it lies in. Hidden files and folders are left out, and
    so is `out_dir`.

    Returns:
        Paths relative to the folder; text, because a hundred thousand of them are ten times faster than `Path`.

    Raises:
        DataError: A folder cannot be read.
    """
    yield from _walk(folder, "", out_dir, suffixes, frozenset())


def matching(pattern: str, out_dir: Path, *, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Return the files that a glob matches, and their paths below its fixed part.

    A folder that it matches stands for the files below it; `**` matches folders of any depth.

    Raises:
        DataError: Nothing matches, or there is no wildcard in it.
    """
    if not glob.has_magic(pattern):
        raise DataError(f"input {pattern}: no such file or folder")
    root = Path(*_fixed_part(Path(pattern)))
    found = False
    for match in _matches(pattern, out_dir, suffixes):
        found = True
        if os.path.isdir(match):  # noqa: PTH112  a hundred thousand times
            for name in below(Path(match), out_dir, suffixes=suffixes):
                yield _below_root(os.path.join(match, name), root)  # noqa: PTH118
        elif match.lower().endswith(suffixes):
            yield _below_root(match, root)
    if not found:
        raise DataError(f"input {pattern}: nothing matches")


def _below_root(path: str, root: Path) -> tuple[str, str]:
    start = os.path.join(root, "") if root != Path() else ""  # noqa: PTH118
    return path, path[len(start) :] if path.startswith(start) else os.path.relpath(path, root)


def _matches(pattern: str, out_dir: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Return what a glob matches; with `**` files alone.

    Python's own `**` follows links that lead back: two of them are more paths than can be counted.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(pattern)  # noqa: PTH207  a whole path, maybe absolute
        return
    first = parts.index("**")
    for folder in glob.glob(str(Path(*parts[:first]))) if first else ["."]:  # noqa: PTH207
        for name in below(Path(folder), out_dir, suffixes=suffixes):
            if _fits(Path(name).parts, parts[first:]):
                yield os.path.join(folder, name) if first else name  # noqa: PTH118


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Return whether a path matches a glob, part by part."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _walk(
    folder: Path, prefix: str, out_dir: Path | None, suffixes: tuple[str, ...], chain: frozenset[Path]
) -> Iterator[str]:
    real = folder.resolve()
    if real in chain or (chain and real == out_dir):
        return
    try:
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, _is_folder(entry)) for entry in entries)
    except OSError as error:
        raise DataError(f"folder {folder}: cannot be read: {error.strerror}") from error
    for name, is_folder in listed:
        if name.startswith("."):
            continue
        if is_folder:
            yield from _walk(folder / name, f"{prefix}{name}{os.sep}", out_dir, suffixes, chain | {real})
        elif name.lower().endswith(suffixes):
            yield prefix + name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: reading it says so
        return False


def _fixed_part(pattern: Path) -> list[str]:
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts or ["."]
