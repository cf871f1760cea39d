"""Write files whole or not at all, open files without following links, and hash files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".gmtool-tmp"
OLD_S = 600.0
"""Temporary files of this age are leftovers, whoever made them."""


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears under `path` whole, or not at all.

    Temporary file in the same folder, write, flush, fsync, `os.replace`, fsync of the folder. The mode of
    a file that is replaced is kept; a link is replaced, not followed. An exception inside the block leaves the
    old file as it was.
    """
    temporary = temporary_path(path.parent)
    mode = _mode_of(path)
    try:
        with temporary.open("xb") as file:  # x: a file or a link that lies under this name is not opened
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) under `path`, whole or not at all."""
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def temporary_path(folder: Path) -> Path:
    """Return an unused hidden name: `.HOST-PROCESS-RANDOM.gmtool-tmp`.

    It is short whatever the target is called (a name has at most 255 bytes), and no other process, of this
    machine or of another one on a shared volume, takes or guesses the same.
    """
    return folder / f".{_host()}-{os.getpid()}-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"


def sweep_leftovers(folder: Path) -> list[Path]:
    """Delete temporary files and folders that killed processes left in `folder`; return what was deleted.

    Files of a living process of this machine, and those of other machines, are deleted once they are `OLD_S` old.
    """
    leftovers = []
    with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in the name
        for path in sorted(folder.glob(f".*{TEMPORARY_SUFFIX}")):
            with contextlib.suppress(FileNotFoundError):
                status, has_ended = path.lstat(), _maker_has_ended(path)
                if stat.S_ISDIR(status.st_mode):  # its time says nothing of what is being written in it
                    if has_ended:
                        shutil.rmtree(path)
                        leftovers.append(path)
                elif has_ended or time.time() - status.st_mtime > OLD_S:
                    path.unlink()
                    leftovers.append(path)
    return leftovers


def open_unlinked(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of the regular file that lies under this very name.

    For files with known names in folders that others can write to: a link planted there would lead the write to
    a file elsewhere, and a pipe or a device would never end.

    Args:
        path: The file.
        flags: As `os.open` takes them.

    Raises:
        OSError: It cannot be opened; it is a link, or no regular file; it is to be written and has a second name
            (a hard link). `strerror` says what to do.
    """
    follow_nothing = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags | follow_nothing, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise _refused(path, "is a link") from error
        if error.errno == errno.ENXIO:  # a socket
            raise _refused(path, "is not a regular file") from error
        raise
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and (flags & (os.O_WRONLY | os.O_RDWR) == 0 or status.st_nlink <= 1):
        return descriptor
    os.close(descriptor)
    raise _refused(path, "is a hard link" if stat.S_ISREG(status.st_mode) else "is not a regular file")


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_lines(lines: list[str]) -> str:
    """Return the SHA-256 of a list of strings, one a line, as 64 hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _refused(path: Path, why: str) -> OSError:
    return OSError(errno.ELOOP, f"{path.name} {why}: remove it")


def _mode_of(path: Path) -> int | None:
    """Return the permissions of a regular file; None if there is none."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    return mode & 0o777 if stat.S_ISREG(mode) else None


@cache
def _host() -> str:
    """Return 12 digits for the machine or container: process numbers are unique in it, until it is restarted."""
    marks = [platform.node()]
    with contextlib.suppress(OSError):  # Linux alone has these
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        marks.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(marks).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _maker_has_ended(temporary: Path) -> bool:
    """Return whether the process that made a temporary file was one of this machine and is gone."""
    host, _, rest = temporary.name.removeprefix(".").partition("-")
    process = rest.partition("-")[0]
    if host != _host() or not process.isdecimal() or sys.platform == "win32":  # there os.kill(_, 0) ends it
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # OSError: it lives and is another user's
        return False
    return False


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # a folder cannot be opened for syncing elsewhere
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
