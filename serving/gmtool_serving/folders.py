"""Which files a folder or a glob holds, whatever links lie in it."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from gmtool.errors import DataError


def below(folder: Path, out_dir: Path, *, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Return the files in a folder and below it whose name ends in one of `suffixes`, in any case.

    Links are followed, but not a link to a folder that it lies in. Hidden files and folders are left out, and
    so is `out_dir`.

    Raises:
        DataError: A folder cannot be read.
    """
    yield from _walk(folder, out_dir, suffixes, frozenset())


def matching(pattern: str, out_dir: Path, *, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, PurePosixPath]]:
    """Return the files that a glob matches, and their paths below its fixed part.

    A folder that it matches stands for the files below it, unless the glob holds `**`.

    Raises:
        DataError: Nothing matches, or there is no wildcard in it.
    """
    if not glob.has_magic(pattern):
        raise DataError(f"input {pattern}: no such file or folder")
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207  recursive
    if not matches:
        raise DataError(f"input {pattern}: nothing matches")
    root = Path(*_fixed_part(Path(pattern)))
    repeats = _repetition_test()
    for match in matches:
        if match.is_dir():
            if "**" not in pattern:
                for path in below(match, out_dir, suffixes=suffixes):
                    yield path, PurePosixPath(path.relative_to(root))
        elif match.name.lower().endswith(suffixes) and not repeats(match.parent):
            yield match, PurePosixPath(match.relative_to(root))


def _walk(folder: Path, out_dir: Path, suffixes: tuple[str, ...], chain: frozenset[Path]) -> Iterator[Path]:
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
            yield from _walk(folder / name, out_dir, suffixes, chain | {real})
        elif name.lower().endswith(suffixes):
            yield folder / name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: reading it says so
        return False


def _repetition_test() -> Callable[[Path], bool]:
    """Return a test whether a path goes through a link to a folder above it: `**` follows that 40 times."""

    @cache
    def chain(folder: Path) -> frozenset[Path] | None:
        above = chain(folder.parent) if folder.parent != folder else frozenset()
        real = folder.resolve()
        return None if above is None or (real in above and folder.is_symlink()) else above | {real}

    return lambda folder: chain(folder) is None


def _fixed_part(pattern: Path) -> list[str]:
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts or ["."]
