"""Decode images in chunks, ahead of what is done with them, in their order and within bounds of memory."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import Decoded, EncodedImage, Failure
from gmtool_serving.outputs.manifest import Record
from gmtool_serving.pipeline.decoder_pool import Decode, Decoders
from gmtool_serving.pipeline.shared_memory import SLAB_BYTES

Result = Decoded | Failure | Record
"""A record if an earlier run completed the image."""
FindDone = Callable[[InputImage], Record | None]
"""Returns the record of an image that an earlier run completed."""


def decode_ahead(
    decoders: Decoders, images: Sequence[InputImage], *, chunk: int, max_bytes: int, find_done: FindDone
) -> Iterator[list[tuple[InputImage, Result]]]:
    """Yield images with their results, in groups of up to `chunk`, in their order.

    Args:
        decoders: Decoding pool.
        images: Images to decode.
        chunk: Images that one decoder takes at a time.
        max_bytes: Limit of pixels that are decoded and not yet yielded, bytes; the first images that are much
            larger than those before exceed it by one image for each chunk.
        find_done: Looks for a record of each image, in the threads of the decoders.
    """
    waiting = deque([(0, len(images))] if images else [])
    """Ranges of images that are not submitted, in order."""
    ahead: list[tuple[int, Sequence[InputImage], Future[list[Result]]]] = []
    """Submitted chunks by their first image."""
    submitted, largest, latest = 0, 1, 1
    while True:
        # Submit chunks, and always the one that is yielded next: whole ones, since each takes a slab and a
        # request, and halves of a batch, which is not copied if it lies in one slab
        room, most = max(1, max_bytes // largest), chunk
        while most > 1 and (most > SLAB_BYTES // latest or 2 * decoders.workers * most > room):
            most //= 2
        window = min(2 * decoders.workers * most + chunk, room)
        while waiting:
            start, end = waiting[0]
            size = min(most, window, end - start)
            if submitted + size > window and ahead and ahead[0][0] < start:
                break
            waiting.popleft()
            part = _chunk(images[start : start + size])
            if start + len(part) < end:
                waiting.appendleft((start + len(part), end))
            insort(ahead, (start, part, _submit(decoders, part, find_done)))
            submitted += len(part)
        if not ahead:
            return
        # Wait for the oldest chunk; what a decoder left of it, since its images are large, is submitted again
        start, part, future = ahead.pop(0)
        results = future.result()
        submitted -= len(part)
        if len(results) < len(part):
            waiting.appendleft((start + len(results), start + len(part)))
        latest = max([1, *(result.pixels.nbytes for result in results if isinstance(result, Decoded))])
        largest = max(largest, latest)
        yield list(zip(part, results, strict=False))
        del future, results  # they hold memory that decoders need


def _submit(decoders: Decoders, images: Sequence[InputImage], find_done: FindDone) -> Future[list[Result]]:
    return decoders.submit(images[0], lambda decode: _find_or_decode(images, decode, find_done))


def _find_or_decode(images: Sequence[InputImage], decode: Decode, find_done: FindDone) -> list[Result]:
    """Return the results of the first images: of all, or up to the one with which memory for them is full."""
    past = [find_done(image) for image in images]
    missing = [EncodedImage(image.path, image.frame) for image, done in zip(images, past, strict=True) if not done]
    decoded = iter(decode.some(missing) if missing else ())
    results: list[Result] = []
    for done in past:
        result = done or next(decoded, None)
        if result is None:
            break
        results.append(result)
    return results


def _chunk(images: Sequence[InputImage]) -> Sequence[InputImage]:
    """Return the first images that may share a chunk: frames of a video share none with anything else."""
    end = 1
    while end < len(images) and _video(images[end]) == _video(images[0]):
        end += 1
    return images[:end]


def _video(image: InputImage) -> str | None:
    return None if image.frame is None else image.location
