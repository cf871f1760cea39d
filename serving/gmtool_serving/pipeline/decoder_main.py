"""Main function of a decoding process: decode what is asked for on stdin, until it is closed."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.images import UInt8Array
from gmtool_serving.inputs.decode import DecodeOptions, EncodedImage, Failure, decode
from gmtool_serving.pipeline.messages import DiedError, read, receive, send, write_all


def serve(descriptor: int) -> None:
    """Decode the chunks of images requested on stdin until it is closed.

    Args:
        descriptor: Memory shared with the parent; -1 for none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent handles it
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # output of a native decoder must not mix with the answers
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    shared = mmap.mmap(descriptor, 0) if descriptor >= 0 else b""
    memory: UInt8Array = np.frombuffer(shared, dtype=np.uint8)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: reading the first request ends the child
        send(answers, {"ready": True})
    while True:
        try:
            request = receive(requests)
            images = [
                EncodedImage(Path(path), frame, None if length is None else read(requests, length))
                for path, frame, length in request["images"]
            ]
        except DiedError:
            return
        options = DecodeOptions(request["exif"], request["max_pixels"], request["bits"])
        found, pixels = _decode(images, options, memory[slice(*request["room"])])
        try:
            send(answers, found)
            if pixels is not None:
                write_all(answers, np.ascontiguousarray(pixels).data.cast("B"))
        except BrokenPipeError:  # the parent is gone
            return


def _decode(
    images: list[EncodedImage], options: DecodeOptions, memory: UInt8Array
) -> tuple[list[dict[str, Any]], UInt8Array | None]:
    """Decode images into shared memory, side by side, up to the first one that does not fit there.

    Returns:
        A description of each decoded image, and the pixels of the last one if they do not fit.
    """
    found: list[dict[str, Any]] = []
    used = 0
    for image in images:
        result = decode(image.path, image.frame, options, image.content, writable=False, room=memory[used:])
        if isinstance(result, Failure):
            found.append(asdict(result))
            continue
        size = result.pixels.nbytes
        fits = used + size <= len(memory)
        place = used if fits else None
        found.append(
            {"shape": result.pixels.shape, "sha256": result.sha256, "warning": result.warning, "place": place}
        )
        if not fits:
            return found, result.pixels
        if not np.may_share_memory(result.pixels, memory):
            memory[used : used + size].reshape(result.pixels.shape)[:] = result.pixels
        used += size
    return found, None
