"""Prediction pipeline in threads: decode, compute and write at the same time, with bounded queues."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

from gmtool.images import UInt8Array
from gmtool.labels.outlines import OutlineOptions
from gmtool.resources import memory_for_pixels
from gmtool_serving.backends.base import Backend
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import Decoded, Failure
from gmtool_serving.outputs.formats import FormatName, MaskItem, needs_pixels
from gmtool_serving.outputs.write import MaskFolders, OutputFile, write_outputs
from gmtool_serving.pipeline.batching import Grouper, padded_size
from gmtool_serving.pipeline.channel import Channel, Clock, Closed
from gmtool_serving.pipeline.compute import ComputeOptions, Labels, predict_batch
from gmtool_serving.pipeline.decode_ahead import FindDone, decode_ahead
from gmtool_serving.pipeline.decoder_pool import Decoders

MAX_BYTES = 512 << 20
"""Limit of decoded images that wait for inference, and of masks that wait to be written; less in a small
container. One always fits."""
MAX_GROUP = 16
"""Masks that a thread writes and syncs together, if as many wait; those of a batch are one group or several."""
PATIENT_GROUPS = 4
"""Groups of decoded images for which an image waits in shared memory for others of its size."""
LAST_WORDS_S = 1.0
"""Seconds that the end of a run waits for the batch and the masks in progress."""


@dataclass(frozen=True)
class Outcome:
    """Result of one input: written files, skipped, or a failure. Files are complete on disk when it is yielded."""

    image: InputImage
    sha256: str | None = None
    failure: Failure | None = None
    skipped: bool = False
    warning: str | None = None
    outputs: tuple[OutputFile, ...] = ()

    @property
    def error(self) -> str | None:
        """Message of the failure, or None."""
        return None if self.failure is None else self.failure.message


@dataclass
class Clocks:
    """Busy time of each stage, and the number of images that passed all of them."""

    decode: Clock
    compute: Clock
    encode: Clock
    started: float = field(default_factory=time.perf_counter)
    images: int = 0

    def utilisation(self) -> dict[str, float]:
        """Return the busy share of each stage, in [0, 1], by its name."""
        wall_s = time.perf_counter() - self.started
        return {name: clock.utilisation(wall_s) for name, clock in self._named()}

    def ms_per_image(self) -> dict[str, float]:
        """Return the mean time of each stage for an image, milliseconds, by its name.

        Lanes compute one after the other and wait for each other meanwhile: that time counts once.
        """
        times = {name: 1000 * clock.busy_s / max(1, self.images) for name, clock in self._named()}
        return times | {"compute": times["compute"] / self.compute.workers}

    def _named(self) -> list[tuple[str, Clock]]:
        return [("decode", self.decode), ("compute", self.compute), ("encode", self.encode)]


@dataclass
class Waiting:
    """Decoded image that waits for inference."""

    image: InputImage
    decoded: Decoded

    groups: int = 0
    """Groups of images that have come since."""

    def wait(self) -> None:
        """Count a group; after `PATIENT_GROUPS` copy the pixels out of memory that the decoders need."""
        self.groups += 1
        if self.groups == PATIENT_GROUPS and self.decoded.pixels.base is not None:
            self.decoded = replace(self.decoded, pixels=self.decoded.pixels.copy())


@dataclass(frozen=True)
class Labeled:
    """Predicted image that waits to be written."""

    image: InputImage
    sha256: str
    warning: str | None
    labels: Labels
    pixels: UInt8Array | None
    """RGB, (H, W, 3); None if no format shows the image."""

    @property
    def size_bytes(self) -> int:
        """Memory of mask and pixels."""
        return self.labels.mask.nbytes + (0 if self.pixels is None else self.pixels.nbytes)


class Pipeline:
    """Local prediction pipeline; `run` yields an outcome for each image and must be closed.

    Args:
        decoders: Decoding pool; the caller closes it.
        backend: Loaded model.
        batch: Images of one size in a batch.
        compute: Padding and tiling.
        out: Output folder.
        formats: Formats to write.
        outlines: Detail of the shapes of labeling tools.
        writers: Threads that encode and write; mostly they wait for the disk.
        find_done: Returns the record of an input that an earlier run completed, or None.
    """

    def __init__(
        self,
        decoders: Decoders,
        backend: Backend,
        *,
        batch: int,
        compute: ComputeOptions,
        out: Path,
        formats: Sequence[FormatName],
        outlines: OutlineOptions,
        writers: int,
        find_done: FindDone,
    ) -> None:
        self.clocks = Clocks(decoders.clock, Clock(backend.lanes), Clock(writers))
        self._decoders, self._backend, self._batch, self._compute = decoders, backend, batch, compute
        self._formats, self._outlines, self._store = formats, outlines, MaskFolders(out)
        self._writers, self._find_done = writers, find_done
        self._keep_pixels = any(map(needs_pixels, formats))
        self._max_bytes = memory_for_pixels(MAX_BYTES)
        self._batches: Channel[list[Waiting]] = Channel(2, self._max_bytes)
        self._labeled: Channel[list[Labeled]] = Channel(2 * writers + 1, self._max_bytes)
        self._outcomes: SimpleQueue[Sequence[Outcome] | BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._limit = batch
        """Images that fit into memory at once, as far as is known; lowered by any lane."""
        self._predicting = backend.lanes
        """Threads that have not ended yet; guarded by the lock."""

    def run(self, images: Sequence[InputImage]) -> Generator[Sequence[Outcome]]:
        """Yield the outcomes of all images, in groups as soon as they are known."""
        # Start the stages
        targets: list[tuple[Callable[..., None], str, tuple[object, ...]]] = [(self._feed, "feed", (images,))]
        targets += [(self._predict, f"compute-{index}", ()) for index in range(self._backend.lanes)]
        targets += [(self._write, f"write-{index}", ()) for index in range(self._writers)]
        threads = [
            # Daemons: a runtime cannot be stopped within a batch, and an interrupted run does not wait for it
            threading.Thread(target=self._guarded, args=(target, arguments), name=name, daemon=True)
            for target, name, arguments in targets
        ]
        self.clocks.started = time.perf_counter()
        for thread in threads:
            thread.start()
        # Pass outcomes on
        try:
            remaining = len(images)
            while remaining:
                outcomes = self._outcomes.get()
                if outcomes is None:
                    return
                if isinstance(outcomes, BaseException):
                    raise outcomes
                remaining -= len(outcomes)
                yield outcomes
        finally:
            # End the stages, with a moment for work in progress
            self._batches.close()
            self._labeled.close()
            deadline = time.monotonic() + LAST_WORDS_S
            for thread in threads:
                thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """End `run` after the outcomes that are known by now. Safe in a signal handler."""
        self._outcomes.put(None)

    def _guarded(self, target: Callable[..., None], arguments: tuple[object, ...]) -> None:
        try:
            target(*arguments)
        except (Closed, CancelledError):
            pass
        except BaseException as error:  # a bug, or a process that does not start: raised again in `run`
            self._outcomes.put(error)

    def _feed(self, images: Sequence[InputImage]) -> None:
        """First stage: decode ahead, group decoded images into batches, in input order."""
        grouper = Grouper[Waiting](self._batch, max_waiting=3 * self._batch, kind=self._kind)
        # A model that computes one image at a time is slow, others are fed in half as many handovers
        chunk = 2 * self._batch if self._batch > 1 else 1
        for group in decode_ahead(
            self._decoders, images, chunk=chunk, max_bytes=self._max_bytes, find_done=self._find_done
        ):
            # Images that failed or were skipped are done, others join a batch
            done = []
            for image, result in group:
                if isinstance(result, Decoded):
                    self._put(grouper.add(Waiting(image, result)))
                elif isinstance(result, Failure):
                    done.append(Outcome(image, sha256=result.sha256, failure=result))
                else:
                    done.append(
                        Outcome(image, result.sha256, skipped=True, warning=result.warning, outputs=result.outputs)
                    )
            if done:
                self._outcomes.put(done)
            for waiting in grouper.waiting():
                waiting.wait()
            del group, image, result  # they hold memory too
        self._put(grouper.flush())
        self._batches.end()

    def _kind(self, waiting: Waiting) -> Hashable | None:
        height, width = waiting.decoded.pixels.shape[:2]
        if self._compute.tiling is not None and self._compute.tiling.applies_to(height, width):
            return None
        return padded_size(height, width, self._compute.pad_px)

    def _put(self, batches: list[list[Waiting]]) -> None:
        for batch in batches:
            self._batches.put(batch, sum(waiting.decoded.pixels.nbytes for waiting in batch))

    def _predict(self) -> None:
        while True:
            try:
                batch = self._batches.get()
            except Closed:
                with self._lock:
                    self._predicting -= 1
                    is_last = self._predicting == 0
                if is_last:
                    self._labeled.end()
                raise
            while batch:
                limit = self._limit
                some, batch = batch[:limit], batch[limit:]
                with self.clocks.compute.running():
                    computed = predict_batch(
                        self._backend,
                        [waiting.decoded.pixels for waiting in some],
                        self._compute,
                        names=[waiting.image for waiting in some],
                    )
                if computed.fitted < len(some):
                    with self._lock:
                        self._limit = min(self._limit, computed.fitted)
                self._hand_over(some, computed.results)

    def _hand_over(self, batch: Sequence[Waiting], results: Sequence[Labels | Failure]) -> None:
        """Give the results of a batch to the writers, in groups: each handover costs a switch of threads."""
        labeled, failed = [], []
        for waiting, result in zip(batch, results, strict=True):
            decoded = waiting.decoded
            if isinstance(result, Failure):
                failed.append(Outcome(waiting.image, sha256=decoded.sha256, failure=result))
                continue
            pixels = decoded.pixels if self._keep_pixels else None
            labeled.append(Labeled(waiting.image, decoded.sha256, decoded.warning, result, pixels))
        if failed:
            self._outcomes.put(failed)
        for start in range(0, len(labeled), MAX_GROUP):
            group = labeled[start : start + MAX_GROUP]
            self._labeled.put(group, sum(each.size_bytes for each in group))

    def _write(self) -> None:
        classes = self._backend.spec.classes
        while True:
            groups = self._labeled.get_some(max(1, MAX_GROUP // self._batch))
            group = [each for found in groups for each in found]
            items = [
                MaskItem(
                    each.image.output,
                    each.labels.mask,
                    each.labels.confidence,
                    each.pixels,
                    each.image.coco_id,
                    each.image.location,
                    self._outlines,
                )
                for each in group
            ]
            with self.clocks.encode.running():
                results = write_outputs(items, classes, self._formats, self._store)
            self._outcomes.put(
                [
                    Outcome(each.image, sha256=each.sha256, failure=written)
                    if isinstance(written, Failure)
                    else Outcome(each.image, sha256=each.sha256, warning=each.warning, outputs=written)
                    for each, written in zip(group, results, strict=True)
                ]
            )
            with self._lock:
                self.clocks.images += sum(not isinstance(written, Failure) for written in results)
