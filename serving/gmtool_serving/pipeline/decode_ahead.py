"""Decode images in chunks, ahead of what is done with them, in their order and within bounds of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import Decoded, EncodedImage, Failure
from gmtool_serving.outputs.manifest import Record
from gmtool_serving.pipeline.decoder_pool import Decode, Decoders

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

    def submit(part: Sequence[InputImage]) -> Future[list[Result]]:
        return decoders.submit(part[0], lambda decode: _find_or_decode(part, decode, find_done))

    ahead: deque[tuple[Sequence[InputImage], Future[list[Result]]]] = deque()
    start = submitted = 0
    most = window = (2 * decoders.workers + 1) * chunk
    largest = 1
    while True:
        # Submit chunks; a large image may shrink the window below what is submitted already
        while start < len(images) and submitted < window:
            part = _chunk(images, start, min(chunk, window - submitted))
            ahead.append((part, submit(part)))
            start, submitted = start + len(part), submitted + len(part)
        if not ahead:
            return
        # Wait for the oldest chunk; what a decoder left of it, since its images are large, is decoded next
        part, future = ahead.popleft()
        results = future.result()
        submitted -= len(results)
        if len(results) < len(part):
            rest = part[len(results) :]
            ahead.appendleft((rest, submit(rest)))
        largest = max(largest, *(result.pixels.nbytes for result in results if isinstance(result, Decoded)), 0)
        window = max(1, min(most, max_bytes // largest))
        yield list(zip(part, results, strict=False))
        del future, results  # they hold memory that decoders need


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


def _chunk(images: Sequence[InputImage], start: int, most: int) -> Sequence[InputImage]:
    """Return up to `most` images from `start` on; frames of a video share no chunk with anything else."""
    end = start + 1
    while end < min(start + most, len(images)) and _video(images[end]) == _video(images[start]):
        end += 1
    return images[start:end]


def _video(image: InputImage) -> str | None:
    return None if image.frame is None else image.location
