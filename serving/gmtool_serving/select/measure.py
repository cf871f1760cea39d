"""Measurements of a pool: decode and predict each image, keep small vectors of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gmtool.images import UInt8Array
from gmtool.resources import memory_for_pixels
from gmtool_serving.backends.base import Backend
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import Decoded, Failure
from gmtool_serving.pipeline.batching import Grouper
from gmtool_serving.pipeline.compute import ComputeOptions, Labels, predict_batch
from gmtool_serving.pipeline.decoder_pool import Decoders
from gmtool_serving.select.appearance import APPEARANCE_SIZE, THUMBNAIL_PX, Float32Array, appearance_of

MAX_BYTES = 256 << 20
"""Limit of decoded images that wait for inference; one always fits."""


FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass
class Measures:
    """Measurements of the images of a pool, by place.

    With 21 classes less than a kilobyte an image; with embeddings of EfficientNet-Lite2 another one.
    """

    images: Sequence[InputImage]
    is_measured: npt.NDArray[np.bool_]
    """(N,): images that were decoded and predicted."""
    shares: Float32Array
    """(N, C): share of the pixels that each class was predicted for."""
    doubt: Float32Array
    """(N, C): sum of the uncertainty, in [0, 1], of the pixels of each predicted class, over all pixels. The sum
    of a row is the mean uncertainty of the image; zero if the model has no confidence."""
    appearance: Float32Array
    """(N, APPEARANCE_SIZE): see `appearance_of`."""
    thumbnails: UInt8Array
    """(N, 192): see `appearance_of`."""
    failures: dict[int, str]
    """Message by place of an image that could not be decoded or predicted."""
    embedding: npt.NDArray[np.float16] | None = None
    """(N, D): the model's embeddings; None if it has no such output."""


def measure(
    images: Sequence[InputImage],
    backend: Backend,
    decoders: Decoders,
    *,
    batch: int,
    wanted: int | None = None,
    note: Callable[[], None] = lambda: None,
    load: Callable[[Measures], None] = lambda measures: None,
    save: Callable[[Measures], None] = lambda measures: None,
) -> Measures:
    """Measure images; those that fail are recorded.

    Args:
        images: Images in the order in which they are read.
        backend: Model whose confidence is the certainty of the pixels.
        decoders: Decoding pool; the caller closes it.
        batch: Images of one size computed at once.
        wanted: Stop after so many measured images; None for all.
        note: Called after each image.
        load: Fills in what was measured before; these images are not read.
        save: Called after each batch.
    """
    size, classes = len(images), len(backend.spec.classes)
    measures = Measures(
        images,
        np.zeros(size, dtype=np.bool_),
        np.zeros((size, classes), dtype=np.float32),
        np.zeros((size, classes), dtype=np.float32),
        np.zeros((size, APPEARANCE_SIZE), dtype=np.float32),
        np.zeros((size, 3 * THUMBNAIL_PX**2), dtype=np.uint8),
        {},
    )
    load(measures)
    waiting = [
        place for place in range(size) if not measures.is_measured[place] and place not in measures.failures
    ]
    for _ in range(size - len(waiting)):
        note()
    grouper = Grouper[tuple[int, UInt8Array]](batch, max_waiting=3 * batch, kind=_size_of)
    ahead: deque[tuple[int, Future[Decoded | Failure]]] = deque()
    upcoming = iter(waiting)
    window, max_bytes = decoders.workers + 1, memory_for_pixels(MAX_BYTES)
    try:
        while wanted is None or np.count_nonzero(measures.is_measured) < wanted:
            # Decode ahead
            while len(ahead) < window and (following := next(upcoming, None)) is not None:
                ahead.append((following, _submit(decoders, images[following])))
            if not ahead:
                break
            # Predict full batches
            place, future = ahead.popleft()
            decoded = future.result()
            if isinstance(decoded, Failure):
                measures.failures[place] = decoded.message
                note()
                continue
            window = max(1, min(2 * decoders.workers + batch, max_bytes // max(1, decoded.pixels.nbytes)))
            for group in grouper.add((place, decoded.pixels)):
                _predict(measures, backend, group, note)
                save(measures)
        for group in grouper.flush():
            _predict(measures, backend, group, note)
    finally:
        for _, future in ahead:
            future.cancel()
    return measures


def _submit(decoders: Decoders, image: InputImage) -> Future[Decoded | Failure]:
    return decoders.submit(image, lambda decode: decode(image.path, image.frame))


def _size_of(item: tuple[int, UInt8Array]) -> Hashable:
    return item[1].shape[:2]


def _predict(
    measures: Measures, backend: Backend, group: list[tuple[int, UInt8Array]], note: Callable[[], None]
) -> None:
    names = [str(measures.images[place]) for place, _ in group]
    computed = predict_batch(backend, [pixels for _, pixels in group], ComputeOptions(), names=names)
    for (place, pixels), result in zip(group, computed.results, strict=True):
        if isinstance(result, Failure):
            measures.failures[place] = result.message
        else:
            _record(measures, place, pixels, result)
        note()


def _record(measures: Measures, place: int, pixels: UInt8Array, labels: Labels) -> None:
    classes = measures.shares.shape[1]
    mask = labels.mask.ravel()
    measures.shares[place] = np.bincount(mask, minlength=classes) / mask.size
    if labels.confidence is not None:
        lacking = 255 - labels.confidence.ravel()
        measures.doubt[place] = np.bincount(mask, weights=lacking, minlength=classes) / (255 * mask.size)
    measures.thumbnails[place], measures.appearance[place] = appearance_of(pixels)
    if labels.embedding is not None:
        if measures.embedding is None:
            measures.embedding = np.zeros((len(measures.images), len(labels.embedding)), dtype=np.float16)
        measures.embedding[place] = np.clip(labels.embedding, -FLOAT16_MAX, FLOAT16_MAX)
    measures.is_measured[place] = True
