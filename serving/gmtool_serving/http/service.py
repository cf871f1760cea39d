"""The service behind the HTTP routes: an image's way from its bytes to its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from gmtool.errors import GmtoolError
from gmtool.resources import memory_for_pixels
from gmtool_serving.backends.tiles import Tiling, window_starts
from gmtool_serving.http.admission import Room, Slots
from gmtool_serving.http.answers import Answer, LabeledImage, encode_answer
from gmtool_serving.http.bodies import Bodies, Upload
from gmtool_serving.http.errors import RefusalError, bad_request, refused
from gmtool_serving.http.metrics import Metrics
from gmtool_serving.http.models import ServedModel
from gmtool_serving.http.options import ServeOptions
from gmtool_serving.http.scheduler import Job, Scheduler
from gmtool_serving.http.wanted import Wanted
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import Decoded, Failure
from gmtool_serving.pipeline.decoder_pool import Decode, Decoders

ENCODERS = 2
"""Encoding threads."""
MAX_DECODED_BYTES = 512 << 20
"""Bytes of decoded images in memory beyond which no other is decoded; less in a small container."""
MAX_TILES = 1024
"""Most tiles of an image: a client must not occupy the device for hours with tiny ones."""


@dataclass
class Times:
    """Seconds that an image took in each stage."""

    decode: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    encode: float = 0.0

    def header(self) -> str:
        """Return the value of the Server-Timing header, milliseconds."""
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in asdict(self).items())


class Service:
    """Loaded models, decoders and queues.

    Args:
        models: Models by name, the default first; at least one.
        options: Limits.
        decoders: Pool of decoders; the service closes it.
        samples: Images that the page offers.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        options: ServeOptions,
        decoders: Decoders,
        samples: tuple[Path, ...] = (),
    ) -> None:
        self.models, self.options, self.samples, self.metrics = models, options, samples, Metrics()
        self.bodies = Bodies(max_bytes=options.max_body_bytes, timeout_s=options.body_timeout_s)
        self.slots = Slots(options.queue)
        self.scheduler = Scheduler(batch=options.batch, pad_px=options.pad_px, observe=self.metrics.batch_done)
        self._decoders = decoders
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
        largest = max(map(self.scheduler.batch_of, models.values()))
        self._room = Room(
            decoders.workers + 2 * largest + ENCODERS,
            undecoded=decoders.workers,
            max_bytes=memory_for_pixels(MAX_DECODED_BYTES),
        )
        self.is_warm = False
        self.metrics.watch("gmtool_queue_images", "Accepted images without an answer.", lambda: self.slots.taken)
        self.metrics.watch("gmtool_queue_limit", "Images that are accepted at most.", lambda: self.slots.most)
        self.metrics.watch("gmtool_ready", "1 if /readyz is 200.", lambda: float(self.is_ready))

    @property
    def is_ready(self) -> bool:
        """Return whether every model has run once, and the service is not stopping."""
        return self.is_warm and not self.slots.draining

    def warm_up(self) -> None:
        """Run every model once, then take images.

        Raises:
            BackendError: The runtime failed.
        """
        for model in self.models.values():
            model.warm_up()
        self.scheduler.start()
        self.is_warm = True

    def close(self) -> None:
        """Drop what waits and end decoders and threads."""
        self.scheduler.close()
        self._decoders.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def answer(self, upload: Upload, wanted: Wanted) -> tuple[Answer, Times]:
        """Return the mask of an image. Cancelling this drops what has not begun.

        Raises:
            RefusalError: 422 for an image that cannot be decoded or labeled, 503 after the deadline.
        """
        try:
            async with asyncio.timeout(self.options.deadline_s):
                answered = await self._answer(upload, wanted)
        except TimeoutError:
            self._count(wanted, "deadline")
            raise RefusalError(
                503,
                "deadline",
                f"{upload.name}: no mask within {self.options.deadline_s:g} s",
                retry_after_s=max(1, round(self.options.deadline_s)),
            ) from None
        except RefusalError as error:
            self._count(wanted, error.code)
            raise
        self._count(wanted, "ok")
        return answered

    async def _answer(self, upload: Upload, wanted: Wanted) -> tuple[Answer, Times]:
        times = Times()
        async with self._room.enter() as place:
            # Decode
            decoded = await self._decode(upload, times)
            await place.hold(decoded.pixels.nbytes)
            if wanted.tiling is not None:
                _refuse_many_tiles(upload.name, decoded, wanted.tiling)
            # Compute
            job = Job(wanted.model, decoded.pixels, upload.name, wanted.tiling)
            computed = await asyncio.wrap_future(self.scheduler.submit(job))
            times.queue, times.compute = computed.waited_s, computed.compute_s
            self.metrics.queue_seconds.observe(computed.waited_s)
            self.slots.answered(computed.compute_s / computed.batch)
            if isinstance(computed.result, Failure):
                raise refused(computed.result)
            # Encode
            image = LabeledImage(upload.name, decoded.pixels, computed.result, decoded.warning)
            started = time.perf_counter()
            try:
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(self._encoders, encode_answer, image, wanted)
            except GmtoolError as error:
                raise bad_request(str(error), code=error.code) from error
            times.encode = time.perf_counter() - started
            self.metrics.encode_seconds.labels(wanted.format).observe(times.encode)
        return answer, times

    async def _decode(self, upload: Upload, times: Times) -> Decoded:
        def task(decode: Decode) -> Decoded | Failure:
            started = time.perf_counter()
            result = decode(Path(upload.name), None, upload.content)
            times.decode = time.perf_counter() - started
            self.metrics.decode_seconds.observe(times.decode)
            return result

        image = InputImage(Path(upload.name), PurePosixPath(upload.name))
        result = await asyncio.wrap_future(self._decoders.submit(image, task))
        if isinstance(result, Failure):
            raise refused(result)
        return result

    def _count(self, wanted: Wanted, code: str) -> None:
        self.metrics.images.labels(wanted.model.name, code).inc()


def _refuse_many_tiles(name: str, decoded: Decoded, tiling: Tiling) -> None:
    height, width = decoded.pixels.shape[:2]
    rows = len(window_starts(height, tiling.height, tiling.height - tiling.overlap))
    columns = len(window_starts(width, tiling.width, tiling.width - tiling.overlap))
    if rows * columns > MAX_TILES:
        raise bad_request(
            f"{name}: {rows}x{columns} tiles of {tiling.height}x{tiling.width}; expected at most {MAX_TILES} in "
            "all: take larger ones, or less overlap"
        )
