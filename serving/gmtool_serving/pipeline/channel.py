"""Bounded queue between pipeline stages, and stage timers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):  # noqa: N818  an end, not an error
    """Raised by a closed or exhausted channel."""


class Channel(Generic[T]):
    """Thread-safe queue, bounded in items and bytes, that can be ended and closed.

    Args:
        max_items: Capacity in items; `put` waits while it is full.
        max_bytes: Capacity in bytes; a single item always fits.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._ended = self._closed = False
        # Two conditions on one lock: `put` wakes one waiting `get` and nothing else
        self._lock = threading.Lock()
        self._has_item, self._has_space = threading.Condition(self._lock), threading.Condition(self._lock)

    def put(self, item: T, size_bytes: int = 0) -> None:
        """Add an item; wait until there is room.

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
        """Return the next item; wait until there is one.

        Raises:
            Closed: The channel was closed, or ended and is empty.
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

    def get_some(self, most: int) -> list[T]:
        """Return the next items, as many as there are up to `most`; wait until there is one.

        Raises:
            Closed: The channel was closed, or ended and is empty.
        """
        found = [self.get()]
        with self._lock:
            while self._items and len(found) < most:
                item, size_bytes = self._items.popleft()
                self._bytes -= size_bytes
                self._has_space.notify()
                found.append(item)
        return found

    def end(self) -> None:
        """Mark the last item as put; items in the channel can still be taken."""
        with self._lock:
            self._ended = True
            self._has_item.notify_all()

    def close(self) -> None:
        """Drop all items and wake all waiting threads."""
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
    """Busy time of a stage, summed over its threads."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.busy_s = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the duration of the block to the busy time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.busy_s += time.perf_counter() - started

    def utilisation(self, wall_s: float) -> float:
        """Return the share of `wall_s` seconds, in [0, 1], that the stage's threads were busy."""
        return min(1.0, self.busy_s / (self.workers * wall_s)) if wall_s > 0 else 0.0
