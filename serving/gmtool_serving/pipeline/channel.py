"""What lies between two stages: a queue with room for so much and no more; and how busy each stage was."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):  # noqa: N818  an end, not an error
    """The queue will take or give nothing any more."""


class Channel(Generic[T]):
    """A queue between threads, bounded in items and in bytes, that can be ended and closed.

    Args:
        max_items: `put` waits while so many are in it.
        max_bytes: `put` also waits while the bytes would be more; one item always fits.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._ended = self._closed = False
        # Two conditions on one lock: a put wakes one of those that wait for an item, and nobody else
        self._lock = threading.Lock()
        self._has_item, self._has_space = threading.Condition(self._lock), threading.Condition(self._lock)

    def put(self, item: T, size_bytes: int = 0) -> None:
        """Add an item as soon as there is room.

        Raises:
            Closed: The channel was closed.
        """
        with self._lock:
            while not self._closed and not self._has_room(size_bytes):
                self._has_space.wait()
            if self._closed:
                raise Closed
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            self._has_item.notify()

    def get(self) -> T:
        """Return the next item as soon as there is one.

        Raises:
            Closed: The channel was closed, or ended and everything was taken.
        """
        with self._lock:
            while not self._closed and not self._items and not self._ended:
                self._has_item.wait()
            if self._closed or not self._items:
                raise Closed
            item, size_bytes = self._items.popleft()
            self._bytes -= size_bytes
            self._has_space.notify()
            return item

    def end(self) -> None:
        """Say that nothing more will be put; what is in it can still be taken."""
        with self._lock:
            self._ended = True
            self._has_item.notify_all()

    def close(self) -> None:
        """Wake everyone and drop what is in it."""
        with self._lock:
            self._closed = True
            self._items.clear()
            self._has_item.notify_all()
            self._has_space.notify_all()

    def _has_room(self, size_bytes: int) -> bool:
        if not self._items:
            return True
        return len(self._items) < self._max_items and self._bytes + size_bytes <= self._max_bytes


class Clock:
    """How long a stage was busy, over all its threads."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.busy_s = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.busy_s += time.perf_counter() - started

    def utilisation(self, wall_s: float) -> float:
        """Return the share of its time, in [0, 1], that the stage worked in a run of so many seconds."""
        return min(1.0, self.busy_s / (self.workers * wall_s)) if wall_s > 0 else 0.0
