"""Find files by glob."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from gmtool.errors import DataError
from gmtool.folders import LeftOut, below


def matching(
    pattern: str, out_dir: Path, *, suffixes: tuple[str, ...], left_out: LeftOut
) -> Iterator[tuple[str, str]]:
    """Yield the files that a glob matches, and their paths below its fixed part.

    A matching folder stands for the files below it; `**` matches folders of any depth. Files in `out_dir` and
    hidden files are skipped; `left_out` collects the hidden ones.

    Raises:
        DataError: Nothing matches, or the pattern has no wildcard.
    """
    if not glob.has_magic(pattern):
        raise DataError(f"input {pattern}: no such file or folder")
    root = Path(*_fixed_part(Path(pattern)))
    found = False
    for match in _matches(pattern, out_dir, suffixes, left_out):
        found = True
        if os.path.isdir(match):  # noqa: PTH112  called a hundred thousand times
            for name in below(Path(match), suffixes=suffixes, excluded=out_dir, left_out=left_out):
                yield _below_root(os.path.join(match, name), root)  # noqa: PTH118
        elif match.lower().endswith(suffixes):
            yield _below_root(match, root)
        else:
            left_out.add_foreign(match)
    if not found:
        raise DataError(f"input {pattern}: nothing matches")


def _below_root(path: str, root: Path) -> tuple[str, str]:
    start = os.path.join(root, "") if root != Path() else ""  # noqa: PTH118
    return path, path[len(start) :] if path.startswith(start) else os.path.relpath(path, root)


def _matches(pattern: str, out_dir: Path, suffixes: tuple[str, ...], left_out: LeftOut) -> Iterator[str]:
    """Yield the matches of a glob; with `**` only files.

    Python's own `**` follows links to parent folders: two of them make the number of paths explode.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(pattern)  # noqa: PTH207  a whole path, maybe absolute
        return
    first = parts.index("**")
    for folder in glob.glob(str(Path(*parts[:first]))) if first else ["."]:  # noqa: PTH207
        for name in below(Path(folder), suffixes=suffixes, excluded=out_dir, left_out=left_out):
            if _fits(Path(name).parts, parts[first:]):
                yield os.path.join(folder, name) if first else name  # noqa: PTH118


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Return whether a path matches a glob, part by part."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _fixed_part(pattern: Path) -> list[str]:
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts or ["."]
