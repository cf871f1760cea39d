"""From images to masks: decoding and writing overlap with computing, and a bad image harms only itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gmtool.classes import ClassSet
from gmtool.errors import GmtoolError
from gmtool.files import sweep_leftovers
from gmtool.images import UInt8Array, read_image
from gmtool.masks import write_mask
from gmtool_serving.backend import Backend
from gmtool_serving.formats import paths
from gmtool_serving.inputs import InputImage

AHEAD = 8
"""Images that are decoded, and masks that wait to be written, at most; memory stays flat."""
WORKERS = 2


@dataclass(frozen=True)
class Outcome:
    """What became of one image."""

    image: InputImage
    error: str | None
    """None when its mask is written; else why not."""


def predict_images(backend: Backend, images: Sequence[InputImage], out_dir: Path) -> Iterator[Outcome]:
    """Write the mask of each image as a palette PNG of the image's own size; yield what became of it.

    Masks are on disk, whole, before their outcome is yielded. The order is that of `images`.
    """
    for folder in {(out_dir / image.output).parent for image in images}:
        folder.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(folder)
    with ThreadPoolExecutor(WORKERS) as decoders, ThreadPoolExecutor(WORKERS) as writers:
        decoded = _ahead(decoders, _decode, images)
        written: deque[tuple[InputImage, Future[str | None]]] = deque()
        for image, pixels in zip(images, decoded, strict=True):
            mask = _mask(backend, image, pixels)
            written.append(
                (
                    image,
                    writers.submit(_write, out_dir / paths("voc", image.output)[0], mask, backend.spec.classes),
                )
            )
            if len(written) > AHEAD:
                yield Outcome(written[0][0], written.popleft()[1].result())
        while written:
            yield Outcome(written[0][0], written.popleft()[1].result())


def _decode(image: InputImage) -> UInt8Array | str:
    """Return the pixels, or why there are none."""
    try:
        return read_image(image.path)
    except GmtoolError as error:
        return str(error)


def _mask(backend: Backend, image: InputImage, pixels: UInt8Array | str) -> UInt8Array | str:
    """Return the mask, or why there is none."""
    if isinstance(pixels, str):
        return pixels
    try:
        mask: UInt8Array = backend.predict(pixels[None]).mask[0]
    except GmtoolError as error:
        return f"{image.path}: {error}"
    return mask


def _write(path: Path, mask: UInt8Array | str, classes: ClassSet) -> str | None:
    if isinstance(mask, str):
        return mask
    try:
        write_mask(path, mask, classes)
    except OSError as error:
        return f"{path}: cannot be written: {error.strerror}"
    return None


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[InputImage], UInt8Array | str], images: Sequence[InputImage]
) -> Iterator[UInt8Array | str]:
    """Map in order with at most `AHEAD` results waiting."""
    waiting: deque[Future[UInt8Array | str]] = deque()
    for image in images:
        waiting.append(pool.submit(work, image))
        if len(waiting) >= AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
