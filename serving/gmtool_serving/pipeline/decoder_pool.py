"""Pool of decoding threads, each with a decoding process if isolated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import Decoded, DecodeOptions, EncodedImage, Failure, decode
from gmtool_serving.pipeline.channel import Clock
from gmtool_serving.pipeline.decoder_process import DecodingProcess
from gmtool_serving.pipeline.shared_memory import SLAB_BYTES

T = TypeVar("T")

WATCH_S = 1.0
CLOSE_S = 0.5
"""Seconds that `close` waits for decoders that are in the middle of an image, all together."""


class Decode:
    """Decoding function of one thread of the pool, in its process if it has one.

    Args:
        options: Decoding options.
        process: Decoding process; None to decode in the thread.
        clock: Counts the time of decoding, without the start of the process.
    """

    def __init__(self, options: DecodeOptions, process: DecodingProcess | None, clock: Clock) -> None:
        self._process, self._clock = process, clock
        self._decode_some = partial(_decode_here, options) if process is None else process.decode

    def __call__(self, path: Path, frame: int | None, content: bytes | None = None) -> Decoded | Failure:
        """Decode a file, a frame of a video, or the content of an image file; see `decode`."""
        return self.some([EncodedImage(path, frame, content)])[0]

    def some(self, images: Sequence[EncodedImage]) -> list[Decoded | Failure]:
        """Decode the first of several images, and as many of the others as memory is meant for: `SLAB_BYTES`."""
        if self._process is not None:
            self._process.wait_until_ready()
        with self._clock.running():
            return self._decode_some(images)


def _decode_here(options: DecodeOptions, images: Sequence[EncodedImage]) -> list[Decoded | Failure]:
    results: list[Decoded | Failure] = []
    used = 0
    for image in images:
        results.append(result := decode(image.path, image.frame, options, image.content))
        used += 0 if isinstance(result, Failure) else result.pixels.nbytes
        if used > SLAB_BYTES:
            break
    return results


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
        processes: list[DecodingProcess | None] = [*self.processes] if isolated else [None] * workers
        self._decodes = [Decode(options, process, self.clock) for process in processes]
        self._queues: list[SimpleQueue[Callable[[], None] | None]] = [SimpleQueue() for _ in range(workers)]
        self._waiting = [0] * workers
        self._lock = threading.Lock()
        self._closed = threading.Event()
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

        Args:
            image: The first image that the task decodes.
            task: Decodes one image or several.
        """
        future: Future[T] = Future()
        with self._lock:
            if image.frame is not None:
                index = hash(image.path) % self.workers
            else:
                index = min(range(self.workers), key=self._waiting.__getitem__)
            self._waiting[index] += 1

        def run() -> None:
            try:
                if self._closed.is_set():
                    future.cancel()
                if future.set_running_or_notify_cancel():
                    future.set_result(task(self._decodes[index]))
            except BaseException as error:
                future.set_exception(error)
            finally:
                with self._lock:
                    self._waiting[index] -= 1

        self._queues[index].put(run)
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

    def _work(self, index: int) -> None:
        while (run := self._queues[index].get()) is not None:
            run()
            del run  # it holds the images of its future

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_S):
            for process in self.processes:
                process.count_time(WATCH_S)
