"""Decoding in a child process: a file that crashes the decoder costs one image, not the run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmtool.errors import GmtoolError
from gmtool.resources import child_environment
from gmtool_serving.inputs.decode import Decoded, DecodeOptions, EncodedImage, Failure, named
from gmtool_serving.pipeline.messages import DiedError, enlarge, read_into, receive, send, write_all
from gmtool_serving.pipeline.shared_memory import SharedMemory, Slab

ATTEMPTS = 2
"""Processes that an image may end before it counts as failed; the first may have died for another reason."""
PATIENCE_S = 60.0
"""Timeout for one image, seconds, without the time in which the process is stopped."""
KEEP_MEMORY = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(32 << 20))
"""Environment in which glibc keeps up to 32 MiB of freed memory: to get it anew for each image can take as long as
decoding."""


class DecodingProcess:
    """Child process that decodes a chunk of images at a time and is restarted when it dies. Used by one thread.

    Neither fork nor multiprocessing's spawn: the first copies locks of other threads, the second imports the
    caller's main module. Pixels come through shared memory, or as raw bytes where they do not fit, and the rest as
    JSON: nothing that a broken decoder sends is executed.
    """

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self._memory = SharedMemory()
        self._process: subprocess.Popen[bytes] | None = None
        self._busy_s: float | None = None
        """Seconds that the child has had for its chunk; None between chunks. Guarded by the lock."""
        self._ready = self._timed_out = self._closed = False
        self._ended = ""
        """Signal or exit code of the last child that died."""
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the child if none runs; do not wait until it is ready."""
        with self._lock:
            if self._closed:
                raise DiedError
            if self._process is not None:
                return
            shared = self._memory.descriptor
            call = f"from gmtool_serving.pipeline.decoder_main import serve; serve({shared})"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", call],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=child_environment() | KEEP_MEMORY,
                pass_fds=() if shared < 0 else (shared,),
                process_group=0,  # Ctrl-C reaches the group of the terminal; this process ends its children itself
            )
        enlarge(self._process.stdout)
        enlarge(self._process.stdin)

    def wait_until_ready(self) -> None:
        """Start the child and wait until it is ready; errors are left to the next call."""
        with contextlib.suppress(DiedError, OSError):
            self.start()
            self._receive_ready()

    def decode(self, images: Sequence[EncodedImage]) -> list[Decoded | Failure]:
        """Decode images in the child; an image that ends the process twice is a failure.

        Returns:
            The results of the first images, in their order: of all, or up to the first one that does not fit into
            shared memory.

        Raises:
            GmtoolError: The child does not start.
        """
        slab = self._memory.take()
        if len(images) > 1 and (together := self._attempt(images, slab)):
            return together
        # A single image; or one of several ended the process or its time: one by one, it is found
        results: list[Decoded | Failure] = []
        used = 0
        for image in images:
            result = self._decode_alone(image, slab, used)
            results.append(result)
            if isinstance(result, Failure):
                continue
            if slab is None or result.pixels.base is not slab.memory:
                break
            used += result.pixels.nbytes
        return results

    def count_time(self, seconds: float) -> None:
        """Add `seconds` to the time of the current chunk, and end the child above `PATIENCE_S`.

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
        self._memory.close()

    def _decode_alone(self, image: EncodedImage, slab: Slab | None, used: int) -> Decoded | Failure:
        name = named(image.path, image.frame)
        for _ in range(ATTEMPTS):
            if results := self._attempt([image], slab, used):
                return results[0]
            if self._timed_out:
                return Failure("timed_out", f"{name}: not decoded within {PATIENCE_S:.0f} s")
            if self._closed:
                break
        return Failure("worker_died", f"{name}: its decoding process crashed ({self._ended})")

    def _attempt(
        self, images: Sequence[EncodedImage], slab: Slab | None, used: int = 0
    ) -> list[Decoded | Failure]:
        """Return results as `decode`, with pixels behind `used` bytes of the slab; none if the child died."""
        self._timed_out = False
        try:
            self.start()
            return self._ask(images, slab, used)
        except (DiedError, OSError):
            if self._closed:
                return []
            was_ready = self._ready
            self._ended = self._bury()
            if not was_ready and not self._ended.startswith("SIG"):
                raise GmtoolError(
                    f"a decoding process did not start ({self._ended}): decode in threads with --workers 0"
                ) from None
            return []

    def _ask(self, images: Sequence[EncodedImage], slab: Slab | None, used: int) -> list[Decoded | Failure]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        self._receive_ready()
        with self._lock:
            self._busy_s = 0.0
        try:
            # Ask
            wanted = [
                (str(image.path), image.frame, None if image.content is None else len(image.content))
                for image in images
            ]
            room = (0, 0) if slab is None else (slab.start + used, slab.start + len(slab.memory))
            send(process.stdin, {"images": wanted, "room": room, **vars(self._options)})
            for image in images:
                if image.content is not None:
                    write_all(process.stdin, memoryview(image.content))
            # Take the answer, and the pixels that did not fit into shared memory
            return [self._result(answer, slab, used, process.stdout) for answer in receive(process.stdout)]
        finally:
            with self._lock:
                self._busy_s = None

    def _result(self, answer: dict[str, Any], slab: Slab | None, used: int, pipe: Any) -> Decoded | Failure:
        if "code" in answer:
            return Failure(answer["code"], answer["message"], answer["sha256"])
        if slab is not None and answer["place"] is not None:
            pixels = slab.array(used + answer["place"], tuple(answer["shape"]))
        else:
            pixels = np.empty(answer["shape"], dtype=np.uint8)
            read_into(pipe, pixels.data.cast("B"))
        return Decoded(pixels, answer["sha256"], answer["warning"])

    def _receive_ready(self) -> None:
        if not self._ready:
            assert self._process is not None and self._process.stdout is not None
            receive(self._process.stdout)
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


def _is_stopped(pid: int) -> bool:
    """Return whether a child is stopped by a signal."""
    if not hasattr(os, "waitid"):  # Windows has no such signals
        return False
    with contextlib.suppress(ChildProcessError):  # it has ended and was reaped
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False
