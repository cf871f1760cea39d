"""Writing a file so that its name never points at half of it, and naming a file by its content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".gmtool-tmp"


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears under `path` whole, or not at all.

    Temporary file in the same folder, write, flush, fsync, `os.replace`, fsync of the folder. The mode of
    a file that is replaced is kept. An exception inside the block leaves the old file as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    mode = path.stat().st_mode & 0o777 if path.exists() else None
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) under `path`, whole or not at all."""
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sweep_leftovers(folder: Path, *, older_than_s: float = 0.0) -> list[Path]:
    """Delete temporary files that a killed process left in `folder`; return what was deleted.

    Args:
        folder: Where to look; what lies deeper is left.
        older_than_s: Leave younger ones, where another process may be writing them.
    """
    newest = time.time() - older_than_s
    leftovers = []
    for path in sorted(folder.glob(f".*{TEMPORARY_SUFFIX}")):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime <= newest:
                path.unlink()
                leftovers.append(path)
    return leftovers


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_lines(lines: list[str]) -> str:
    """Return the SHA-256 of a list of strings, one a line, as 64 hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # a folder cannot be opened for syncing elsewhere
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
