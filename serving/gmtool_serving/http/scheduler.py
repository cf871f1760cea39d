"""Compute thread of the service: batches of what waits, one batch at a time on the device."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

from gmtool.images import UInt8Array
from gmtool_serving.backends.tiles import Tiling
from gmtool_serving.http.models import ServedModel
from gmtool_serving.inputs.decode import Failure
from gmtool_serving.pipeline.batching import padded_size
from gmtool_serving.pipeline.compute import ComputeOptions, Labels, predict_batch


@dataclass(frozen=True)
class ComputedImage:
    """Result of one image and its times."""

    result: Labels | Failure
    waited_s: float
    """Seconds in the queue."""
    compute_s: float
    """Seconds of the batch."""
    batch: int
    """Images of the batch."""


@dataclass(frozen=True)
class Job:
    """An image that waits for inference. Cancelling its future takes it out of the queue."""

    model: ServedModel
    pixels: UInt8Array
    name: str
    """Name of the image in messages."""
    tiling: Tiling | None = None
    future: Future[ComputedImage] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Scheduler:
    """Queue of images of several models, and the thread that computes them.

    When the device is free, the oldest image goes next, together with those of its model and padded size that
    wait, up to a batch: batches grow with the load, and no image waits for another one to come.

    Args:
        batch: Images of a batch; None for each model's own default.
        pad_px: Pad images to a multiple of so many pixels.
        observe: Called after each batch with model, images and seconds.
    """

    def __init__(
        self, *, batch: int | None, pad_px: int, observe: Callable[[ServedModel, int, float], None]
    ) -> None:
        self._batch, self._pad_px, self._observe = batch, pad_px, observe
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._fitted: dict[str, int] = {}
        """Images that fit into memory at once, by model, where a batch did not."""
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)

    def start(self) -> None:
        """Start the compute thread."""
        self._thread.start()

    def submit(self, job: Job) -> Future[ComputedImage]:
        """Put an image into the queue; return its future result."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._jobs)

    def close(self) -> None:
        """Drop what waits and end the thread after its batch."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify()

    def batch_of(self, model: ServedModel) -> int:
        """Return the images of a full batch of a model."""
        wanted = self._batch or model.backend.preferred_batch
        return min(wanted, self._fitted.get(model.name, wanted))

    def _work(self) -> None:
        while (jobs := self._take()) is not None:
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if not jobs:
                continue
            try:
                self._compute(jobs)
            except BaseException as error:  # a bug: the requests get it, the thread goes on
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)

    def _take(self) -> list[Job] | None:
        """Return the next batch, or None if the queue was closed."""
        with self._changed:
            while True:
                self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
                if self._jobs or self._closed:
                    break
                self._changed.wait()
            if self._closed:
                return None
            first = self._jobs[0]
            kind, limit = self._kind(first), self.batch_of(first.model)
            alike = [job for job in self._jobs if self._kind(job) == kind][: 1 if kind is None else limit]
            taken = [first] if kind is None else alike
            chosen = set(map(id, taken))
            self._jobs = deque(job for job in self._jobs if id(job) not in chosen)
            return taken

    def _kind(self, job: Job) -> Hashable | None:
        height, width = job.pixels.shape[:2]
        if job.tiling is not None and job.tiling.applies_to(height, width):
            return None
        return job.model.name, padded_size(height, width, self._pad_px)

    def _compute(self, jobs: list[Job]) -> None:
        started = time.perf_counter()
        model = jobs[0].model
        # Images of one batch may have tiles of different sizes, none of which they are larger than
        options = ComputeOptions(self._pad_px, jobs[0].tiling if len(jobs) == 1 else None)
        computed = predict_batch(
            model.backend, [job.pixels for job in jobs], options, names=[job.name for job in jobs]
        )
        seconds = time.perf_counter() - started
        if computed.fitted < len(jobs):
            self._fitted[model.name] = computed.fitted
        self._observe(model, len(jobs), seconds)
        for job, result in zip(jobs, computed.results, strict=True):
            job.future.set_result(ComputedImage(result, started - job.since, seconds, len(jobs)))
