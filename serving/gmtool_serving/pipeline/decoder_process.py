"""Decoding in a child process: a file that crashes the decoder costs one image, not the run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from gmtool.errors import GmtoolError
from gmtool.images import UInt8Array
from gmtool_serving.inputs.decode import Decoded, DecodeOptions, Failure, decode, named

PIPE_BYTES = 1 << 20
"""Pipe capacity. Linux's default is 64 KiB, and each refill costs two context switches."""
ATTEMPTS = 2
"""Processes that an image may end before it counts as failed; the first may have died for another reason."""
PATIENCE_S = 60.0
"""Timeout for one image, seconds, without the time in which the process is stopped."""

_LENGTH = struct.Struct("<I")


class DecodingProcess:
    """Child process that decodes one image at a time and is restarted when it dies. Used by one thread.

    Neither fork nor multiprocessing's spawn: the first copies locks of other threads, the second imports the
    caller's main module. Pixels come as raw bytes and the rest as JSON: nothing that a broken decoder sends
    is executed.
    """

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._busy_s: float | None = None
        """Seconds that the child has had for its image; None between images. Guarded by the lock."""
        self._ready = self._timed_out = self._closed = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the child if none runs; do not wait until it is ready."""
        with self._lock:
            if self._closed:
                raise _Died
            if self._process is not None:
                return
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from gmtool_serving.pipeline.decoder_process import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=_child_environment(),
                process_group=0,  # Ctrl-C reaches the group of the terminal; this process ends its children itself
            )
        _enlarge(self._process.stdout)
        _enlarge(self._process.stdin)

    def wait_until_ready(self) -> None:
        """Start the child and wait until it is ready; errors are left to the next call."""
        with contextlib.suppress(_Died, OSError):
            self.start()
            self._receive_ready()

    def __call__(self, path: Path, frame: int | None, content: bytes | None = None) -> Decoded | Failure:
        """Decode an image file or a video frame in the child. An image that ends the process twice is a failure.

        Args:
            path: Image or video file; only its name in messages if there is `content`.
            frame: Frame number in the video; None for an image.
            content: Bytes of the image file; None to read `path`.

        Raises:
            GmtoolError: The child does not start.
        """
        ended = ""
        for _ in range(ATTEMPTS):
            try:
                self.start()
                return self._ask(path, frame, content)
            except (_Died, OSError):
                if self._closed:
                    break
                was_ready = self._ready
                ended = self._bury()
                if not was_ready and not ended.startswith("SIG"):
                    raise GmtoolError(
                        f"a decoding process did not start ({ended}): decode in threads with --workers 0"
                    ) from None
            if self._timed_out:
                return Failure("timed_out", f"{named(path, frame)}: not decoded within {PATIENCE_S:.0f} s")
        return Failure("worker_died", f"{named(path, frame)}: its decoding process crashed ({ended})")

    def count_time(self, seconds: float) -> None:
        """Add `seconds` to the time of the current image, and end the child above `PATIENCE_S`.

        Another thread calls this every `seconds` seconds. No clock is read: time does not count while the whole
        program is stopped (Ctrl-Z, a frozen container), nor while the child is.
        """
        with self._lock:
            process = self._process
            if self._busy_s is None or process is None or _is_stopped(process.pid):
                return
            self._busy_s += seconds
            if self._busy_s > PATIENCE_S:
                self._timed_out = True
                process.kill()

    def close(self) -> None:
        """Kill the child."""
        with self._lock:
            self._closed = True
            process = self._process
        if process is not None:
            process.kill()

    def join(self) -> None:
        """Wait until the child has ended, and close its pipes."""
        if self._process is not None:
            self._bury()

    def _ask(self, path: Path, frame: int | None, content: bytes | None) -> Decoded | Failure:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        self._timed_out = False
        self._receive_ready()
        with self._lock:
            self._busy_s = 0.0
        try:
            length = None if content is None else len(content)
            _send(process.stdin, {"path": str(path), "frame": frame, "bytes": length, **vars(self._options)})
            if content is not None:
                _write_all(process.stdin, memoryview(content))
            answer = _receive(process.stdout)
            if "code" in answer:
                return Failure(answer["code"], answer["message"], answer["sha256"])
            pixels: UInt8Array = np.empty(answer["shape"], dtype=np.uint8)
            _read_into(process.stdout, pixels.data.cast("B"))
            return Decoded(pixels, answer["sha256"], answer["warning"])
        finally:
            with self._lock:
                self._busy_s = None

    def _receive_ready(self) -> None:
        if not self._ready:
            assert self._process is not None and self._process.stdout is not None
            _receive(self._process.stdout)
            self._ready = True

    def _bury(self) -> str:
        """End the child; return its signal or exit code, as text."""
        process, self._process, self._ready = self._process, None, False
        assert process is not None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        known = {int(number): number.name for number in signal.Signals}
        return known.get(-code, f"exit code {code}")


def serve() -> None:
    """Decode the images requested on stdin until it is closed: main function of the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent handles it
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # output of a native decoder must not mix with the answers
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: reading the first request ends the child
        _send(answers, {"ready": True})
    while True:
        try:
            request = _receive(requests)
            content = None if request["bytes"] is None else _read(requests, request["bytes"])
        except _Died:
            return
        options = DecodeOptions(request["exif"], request["max_pixels"], request["bits"])
        result = decode(Path(request["path"]), request["frame"], options, content)
        try:
            if isinstance(result, Failure):
                _send(answers, asdict(result))
                continue
            shape = result.pixels.shape
            _send(answers, {"shape": shape, "sha256": result.sha256, "warning": result.warning})
            _write_all(answers, np.ascontiguousarray(result.pixels).data.cast("B"))
        except BrokenPipeError:  # the parent is gone
            return


class _Died(Exception):  # noqa: N818  internal signal
    """The other end of the pipe is gone."""


def _is_stopped(pid: int) -> bool:
    """Return whether a child is stopped by a signal."""
    if not hasattr(os, "waitid"):  # Windows has no such signals
        return False
    with contextlib.suppress(ChildProcessError):  # it has ended and was reaped
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _child_environment() -> dict[str, str]:
    # The same module search path as this process
    paths = os.pathsep.join(path for path in sys.path if path)
    # The child computes nothing: threads of a linear algebra library would only take memory
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _enlarge(pipe: Any) -> None:
    with contextlib.suppress(ImportError, AttributeError, OSError):  # Linux only, and up to a limit
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _send(pipe: Any, message: dict[str, Any]) -> None:
    content = json.dumps(message).encode("ascii")  # escapes carry bytes that are not UTF-8
    _write_all(pipe, memoryview(_LENGTH.pack(len(content)) + content))


def _receive(pipe: Any) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    message: dict[str, Any] = json.loads(_read(pipe, length))
    return message


def _read(pipe: Any, length: int) -> bytes:
    content = bytearray(length)
    _read_into(pipe, memoryview(content))
    return bytes(content)


def _read_into(pipe: Any, view: memoryview) -> None:
    while view:
        count = pipe.readinto(view)
        if not count:
            raise _Died
        view = view[count:]


def _write_all(pipe: IO[bytes], view: memoryview) -> None:
    while view:
        view = view[pipe.write(view) :]
