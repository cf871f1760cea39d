"""A session of ONNX Runtime for each shape of images: on a card it is slow to go from one shape to another."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition

import numpy as np
import onnxruntime as ort

from gmtool.images import UInt8Array

MAX_SESSIONS = 12
"""Sessions that are kept, such as for six scales of images in portrait and landscape; each has its own memory."""
MAX_BORROWED = 16
"""Single images of a size that are computed as a full batch before they get a session of their own."""

Shape = tuple[int, int, int]
"""Images, height and width."""


class SessionShapes:
    """Sessions of one model on a card, each for one shape of images, the least recently used one given up.

    A convolution of ONNX Runtime keeps what cuDNN has chosen for the last shape alone (onnxruntime#23006). When it
    sees another one, even one from before, all is chosen and compiled anew: for 8 images in EfficientNet-Lite2 on
    an H200, 0.7 s in float32 and 2.2 s in half precision, where computing them takes 12 and 24 ms. A session that
    sees one shape alone never does. Not safe in several threads at once.

    Args:
        first: A session that has computed nothing yet.
        make: Makes another one, for so many images; None on a processor, where one session takes all shapes alike.
    """

    def __init__(self, first: ort.InferenceSession, make: Callable[[int], ort.InferenceSession] | None) -> None:
        self._first: ort.InferenceSession | None = first
        self._make = make
        self._sessions: OrderedDict[Shape, ort.InferenceSession] = OrderedDict()
        self._largest_batch = 1
        self._borrowed: Counter[tuple[int, int]] = Counter()
        """Single images that were computed as a full batch, by their size."""
        self._fitting: dict[tuple[int, int], int] = {}
        """Images of a size that fit into memory at once, where more did not."""

    def __len__(self) -> int:
        return len(self._sessions)

    def filled(self, images: UInt8Array) -> UInt8Array:
        """Return images, (N, H, W, 3), with the last one repeated up to a number of images that occurs often.

        A batch that is not full would be a shape of its own. It gets as many images as the largest batch so far; a
        single image does where that session is there, unless single ones come again and again.
        """
        count, height, width = images.shape[:3]
        size = height, width
        self._largest_batch = max(self._largest_batch, count)
        rows = self._largest_batch
        if count == 1:
            is_borrowed = (rows, *size) in self._sessions and (1, *size) not in self._sessions
            if is_borrowed and self._borrowed[size] < MAX_BORROWED:
                self._borrowed[size] += 1
            else:
                rows = 1
        if rows > self._fitting.get(size, rows):
            rows = count
        return images if rows == count else np.concatenate([images, np.repeat(images[-1:], rows - count, axis=0)])

    def session_for(self, images: UInt8Array) -> ort.InferenceSession:
        """Return the session for the shape of images, (N, H, W, 3).

        Raises:
            MemoryError: It could not be made, perhaps because others hold the card's memory.
        """
        if self._make is None:
            assert self._first is not None
            return self._first
        count, height, width = images.shape[:3]
        shape = count, height, width
        session = self._sessions.pop(shape, None)
        if session is None:
            if len(self._sessions) == MAX_SESSIONS:
                self._sessions.popitem(last=False)
            # The first one was made for single images
            session = self._first if count == 1 and self._first is not None else self._made(count)
            self._first = None
        self._sessions[shape] = session
        return session

    def _made(self, count: int) -> ort.InferenceSession:
        assert self._make is not None
        try:
            return self._make(count)
        except Exception as error:  # handles of cuBLAS and cuDNN that find no memory say only "not initialized"
            if not self._sessions:
                raise
            raise MemoryError(str(error)) from error

    def clear(self) -> None:
        """Give up all sessions, with their memory."""
        self._sessions.clear()

    def note_too_many(self, images: UInt8Array) -> None:
        """Note that images do not fit into the card's memory, though no other session has any."""
        count, height, width = images.shape[:3]
        self._fitting[height, width] = max(1, count - 1)


class SharedLock:
    """Lock that several threads hold together, or one alone."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._inside = self._waiting = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Hold it beside others, unless one waits to hold it alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold it while no other thread does."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._inside)
            finally:
                self._waiting -= 1
                self._changed.notify_all()
            yield
