"""Pool of decoding threads, each with a decoding process if isolated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import Decoded, DecodeOptions, Failure, decode
from gmtool_serving.pipeline.channel import Clock
from gmtool_serving.pipeline.decoder_process import DecodingProcess

T = TypeVar("T")


class Decode(Protocol):
    """Decodes a file, a frame of a video, or the content of an image file: see `decode`."""

    def __call__(self, path: Path, frame: int | None, content: bytes | None = None) -> Decoded | Failure: ...


WATCH_S = 1.0
CLOSE_S = 0.5
"""Seconds that `close` waits for decoders that are in the middle of an image, all together."""


class Decoders:
    """Pool of decoding threads.

    Args:
        workers: Threads.
        options: Decoding options.
        isolated: Decode in one process a thread, so that a crash costs one image only.
    """

    def __init__(self, workers: int, options: DecodeOptions, *, isolated: bool) -> None:
        self.workers = workers
        self.clock = Clock(workers)
        """Busy time of the decoders, without the start of their processes."""
        self.processes = [DecodingProcess(options) for _ in range(workers)] if isolated else []
        self._queues: list[SimpleQueue[tuple[Future[Any], Callable[[], None]] | None]] = [
            SimpleQueue() for _ in range(workers)
        ]
        self._waiting = [0] * workers
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._decodes: list[Decode] = list(self.processes) or [self._decode_here(options)] * workers
        self._threads = [
            threading.Thread(target=self._work, args=(index,), name=f"decode-{index}", daemon=True)
            for index in range(workers)
        ]
        if isolated:
            self._threads.append(threading.Thread(target=self._watch, name="decode-watch", daemon=True))
        for thread in self._threads:
            thread.start()

    def start(self, count: int) -> None:
        """Start up to `count` decoding processes now, while the model is being loaded."""
        for process in self.processes[:count]:
            process.start()

    def submit(self, image: InputImage, task: Callable[[Decode], T]) -> Future[T]:
        """Run `task`, which gets a decoding function, in the thread with the shortest queue.

        All frames of a video go to one thread, which keeps the video open. A future that is cancelled before its
        turn drops its task.
        """
        future: Future[T] = Future()
        with self._lock:
            if image.frame is not None:
                index = hash(image.path) % self.workers
            else:
                index = min(range(self.workers), key=self._waiting.__getitem__)
            self._waiting[index] += 1

        def decode_there(path: Path, frame: int | None, content: bytes | None = None) -> Decoded | Failure:
            return self._decode(index, path, frame, content)

        def run() -> None:
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(task(decode_there))
            except BaseException as error:
                future.set_exception(error)
            finally:
                with self._lock:
                    self._waiting[index] -= 1

        self._queues[index].put((future, run))
        return future

    def close(self) -> None:
        """End threads and processes; drop tasks that have not begun."""
        self._closed.set()
        for process in self.processes:
            process.close()
        for queue in self._queues:
            queue.put(None)
        deadline = time.monotonic() + CLOSE_S
        for process, thread in zip(self.processes, self._threads, strict=False):
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
            if not thread.is_alive():
                process.join()

    @staticmethod
    def _decode_here(options: DecodeOptions) -> Decode:
        return lambda path, frame, content=None: decode(path, frame, options, content)

    def _decode(self, index: int, path: Path, frame: int | None, content: bytes | None) -> Decoded | Failure:
        if self.processes:
            self.processes[index].wait_until_ready()
        with self.clock.running():
            return self._decodes[index](path, frame, content)

    def _work(self, index: int) -> None:
        while True:
            entry = self._queues[index].get()
            if entry is None:
                return
            future, run = entry
            if self._closed.is_set():
                future.cancel()
            else:
                run()

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_S):
            for process in self.processes:
                process.count_time(WATCH_S)
