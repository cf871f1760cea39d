"""OS lock on an output folder or a shard of it.

Not the library `filelock`: it accepts a hard link or a pipe in place of the lock file, names no holder, and has no
locks that exclude each other by shard.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from gmtool.errors import DataError
from gmtool.files import open_unlinked
from gmtool.json_toml import parse_json, typed

PREFIX = ".gmtool-predict"


class FolderLock:
    """Exclusive lock on an output folder or one shard of it.

    Two runs exclude each other unless they are different shards of the same count. The operating system holds the
    lock (flock, or a locked byte on Windows): a crash releases it, and it works between machines where the file
    system supports that.

    Args:
        folder: Output folder.
        shard: Shard such as `1-of-4`, or "" for the whole folder.

    Raises:
        DataError: Another run holds the lock, the folder cannot be written, or the lock file is a link.
    """

    def __init__(self, folder: Path, shard: str = "") -> None:
        self.path = folder / (f"{PREFIX}-{shard}.lock" if shard else f"{PREFIX}.lock")
        self._descriptor: int | None = None
        try:
            self._descriptor = _take(self.path)
            if self._descriptor is None:
                raise _held(folder, self.path)
            division = shard.partition("-of-")[2]
            # Own lock first, then the others: of two runs that start at once, at least one sees the other
            for other in sorted(folder.glob(f"{PREFIX}*.lock")):
                same = bool(shard) and other.name.removesuffix(".lock").endswith(f"-of-{division}")
                if other != self.path and not same and not _is_free(other):
                    self.release()
                    raise _held(folder, other)
        except OSError as error:
            self.release()
            raise DataError(f"output folder {folder}: cannot be written: {error.strerror}") from error

    def release(self) -> None:
        """Release the lock and delete its file."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def _take(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None if another process does."""
    while True:
        descriptor = open_unlinked(path, os.O_RDWR | os.O_CREAT)
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        try:
            same = os.path.samestat(path.lstat(), os.fstat(descriptor))
        except FileNotFoundError:
            same = False
        if same:  # else its last holder has just deleted the file
            os.truncate(descriptor, 0)
            os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
            return descriptor
        os.close(descriptor)


def _is_free(path: Path) -> bool:
    try:
        descriptor = open_unlinked(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    free = _lock(descriptor)
    if free:
        path.unlink(missing_ok=True)  # left by a killed process
    os.close(descriptor)
    return free


@dataclass(frozen=True)
class Holder:
    """Process that holds a lock."""

    process: int
    host: str


def holder_of(content: bytes) -> str:
    """Return the holder that a lock file's content names, for messages."""
    try:
        holder = typed(Holder, parse_json(content, where="lock"), where="lock")
    except DataError:
        return "another gmtool predict"
    return f"another gmtool predict (process {holder.process} on {holder.host})"


def _held(folder: Path, lock: Path) -> DataError:
    return DataError(f"output folder {folder}: {_holder(lock)} writes into it: wait, or stop that run")


def _holder(path: Path) -> str:
    try:
        with os.fdopen(open_unlinked(path), "rb") as file:
            return holder_of(file.read(4096))
    except OSError:
        return holder_of(b"")


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # behind the text, which stays readable
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
