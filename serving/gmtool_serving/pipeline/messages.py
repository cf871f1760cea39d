"""Messages between this program and a decoding process: a length, JSON, and raw bytes behind it."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import IO, Any

PIPE_BYTES = 1 << 20
"""Pipe capacity. Linux's default is 64 KiB, and each refill costs two context switches."""

_LENGTH = struct.Struct("<I")


class DiedError(Exception):
    """The other end of the pipe is gone."""


def enlarge(pipe: Any) -> None:
    """Raise the capacity of a pipe to `PIPE_BYTES` where the system allows it."""
    with contextlib.suppress(ImportError, AttributeError, OSError):  # Linux only, and up to a limit
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def send(pipe: Any, message: Any) -> None:
    """Write a message."""
    content = json.dumps(message).encode("ascii")  # escapes carry bytes that are not UTF-8
    write_all(pipe, memoryview(_LENGTH.pack(len(content)) + content))


def receive(pipe: Any) -> Any:
    """Read a message.

    Raises:
        DiedError: The other end is gone.
    """
    (length,) = _LENGTH.unpack(read(pipe, _LENGTH.size))
    return json.loads(read(pipe, length))


def read(pipe: Any, length: int) -> bytes:
    """Read so many bytes; errors as of `receive`."""
    content = bytearray(length)
    read_into(pipe, memoryview(content))
    return bytes(content)


def read_into(pipe: Any, view: memoryview) -> None:
    """Fill a buffer; errors as of `receive`."""
    while view:
        count = pipe.readinto(view)
        if not count:
            raise DiedError
        view = view[count:]


def write_all(pipe: IO[bytes], view: memoryview) -> None:
    """Write a buffer."""
    while view:
        view = view[pipe.write(view) :]
