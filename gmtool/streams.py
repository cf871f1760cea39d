"""Standard streams that are closed, full, or not UTF-8: none of these ends a command."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Output(io.FileIO):
    """stdout or stderr. After its first failure what is written is dropped.

    A reader that has gone (`| head`) wants no more. Any other failure, such as a full disk, is kept in `failure`.
    """

    failure: OSError | None = None
    _is_over = False

    def write(self, data: Buffer, /) -> int:
        """Write, or drop; return how many bytes the caller need not write again."""
        if not self._is_over:
            try:
                return super().write(data)
            except BrokenPipeError:
                self._is_over = True
            except OSError as error:
                self._is_over, self.failure = True, error
        return memoryview(data).nbytes


def open_standard_streams() -> None:
    """Replace stdout and stderr by streams that drop what nobody can receive; open those that are closed.

    A closed one is opened to the null device: else the next file that is opened gets its number, and what a
    native library prints goes into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # opens the lowest number that is free
    if sys.stdin is None:
        sys.stdin = os.fdopen(0)
    sys.stdout, sys.stderr = _opened(1, sys.stdout), _opened(2, sys.stderr)


def stdout_failure() -> str | None:
    """Return why something that was printed on stdout is lost; None if nothing is, or nobody wanted it."""
    sys.stdout.flush()
    failure = getattr(getattr(sys.stdout.buffer, "raw", None), "failure", None)
    return failure.strerror if isinstance(failure, OSError) else None


def _opened(descriptor: int, before: TextIO | None) -> TextIO:
    """Return a text stream like `before`, the null device for None."""
    if before is not None and os.name != "posix":  # a Windows console is no ordinary file
        if isinstance(before, io.TextIOWrapper):
            before.reconfigure(errors="backslashreplace")
        return before
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor, "w", closefd=False)),
        encoding="utf-8" if before is None else before.encoding,
        errors="backslashreplace",  # a locale without UTF-8 has no character for some file names
        line_buffering=descriptor == 2 or (before is not None and before.isatty()),
        write_through=isinstance(before, io.TextIOWrapper) and before.write_through,
    )
