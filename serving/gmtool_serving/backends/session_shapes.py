"""A session of ONNX Runtime for each shape of images: on a card it is slow to go from one shape to another."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

import numpy as np
import onnxruntime as ort

from gmtool.images import UInt8Array

MOST = 8
"""Sessions that are kept; each has weights and memory of its own."""

OFTEN = 16
"""Batches of a shape that are filled up to a larger session before they get their own."""

Shape = tuple[int, int, int]
"""Images, height and width."""


class SessionShapes:
    """Sessions of one model on a card, each for one shape of images, the least recently used one given up.

    A convolution of ONNX Runtime keeps what cuDNN has chosen for the last shape alone (onnxruntime#23006). When it
    sees another one, even one from before, all is chosen and compiled anew: on an H200, 2.2 s for a batch that
    EfficientNet-Lite2 computes in 24 ms in half precision, and 0.7 s in float32. A session that sees one shape
    alone never does. Not safe in several threads at once.

    Args:
        first: A session that has computed nothing yet.
        make: Makes another one; None on a processor, where one session takes all shapes alike.
    """

    def __init__(self, first: ort.InferenceSession, make: Callable[[], ort.InferenceSession] | None) -> None:
        self._unused: list[ort.InferenceSession] = [first]
        self._make = make
        self._sessions: OrderedDict[Shape, ort.InferenceSession] = OrderedDict()
        self._full = 1
        """Images of the largest batch so far."""
        self._most: int | None = None
        """Images that fit into memory at once, as far as is known."""
        self._borrowed: Counter[Shape] = Counter()
        """Batches that were computed in a larger session than they need, by the shape they would have."""

    def __len__(self) -> int:
        return len(self._sessions)

    def filled(self, images: UInt8Array) -> UInt8Array:
        """Return images, (N, H, W, 3), with the last one repeated up to a number of images that occurs often.

        A batch that is not full would be a shape of its own. It gets as many images as a session has that is there
        for its size, unless such batches come again and again; else a power of two, at most the largest batch.
        """
        count, height, width = images.shape[:3]
        self._full = max(self._full, count)
        rows = min(self._full, 1 << (count - 1).bit_length())
        larger = [n for n, *size in self._sessions if n >= count and size == [height, width]]
        own = rows, height, width
        if larger and min(larger) > rows and self._borrowed[own] < OFTEN:
            self._borrowed[own] += 1
            rows = min(larger)
        if self._most is not None and rows > self._most:
            rows = count
        return images if rows == count else np.concatenate([images, np.repeat(images[-1:], rows - count, axis=0)])

    def of(self, images: UInt8Array) -> ort.InferenceSession:
        """Return the session for the shape of images, (N, H, W, 3)."""
        if self._make is None:
            return self._unused[0]
        count, height, width = images.shape[:3]
        shape = count, height, width
        session = self._sessions.pop(shape, None)
        if session is None:
            if len(self._sessions) == MOST:
                self._sessions.popitem(last=False)
            session = self._unused.pop() if self._unused else self._make()
        self._sessions[shape] = session
        return session

    def ran_out(self, images: UInt8Array) -> bool:
        """Give up all sessions after the card had too little memory for images.

        Returns:
            Whether others than that for these images took memory, so that they may fit now.
        """
        others = len(self._sessions) > 1
        self._sessions.clear()
        if not others:
            self._most = max(1, len(images) - 1)
        return others
