"""Bounds on the images inside the service: how many are accepted, and how many are in memory as pixels."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from gmtool_serving.http.errors import RefusalError

MAX_RETRY_S = 60


class Slots:
    """Accepted images that have no answer yet, up to a maximum.

    Args:
        most: Slots.
    """

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0
        self.draining = False
        self.seconds_per_image = 0.5
        """Moving average of the time between two answers at full load, for Retry-After."""

    @contextmanager
    def take(self, images: int) -> Iterator[None]:
        """Hold slots within the block.

        Raises:
            RefusalError: See `refuse`.
        """
        self.refuse(images)
        self.taken += images
        try:
            yield
        finally:
            self.taken -= images

    def refuse(self, images: int = 1) -> None:
        """Refuse images that there is no slot for, before anything is done for them.

        Raises:
            RefusalError: 503 with Retry-After if the queue is full or the service stops; 413 for more images than
                slots.
        """
        if self.draining:
            raise RefusalError(503, "stopping", "the service is stopping", retry_after_s=1, closes=True)
        if images > self.most:
            raise RefusalError(413, "too_many_images", f"{images} images; expected at most {self.most}")
        if self.taken + images > self.most:
            wait_s = min(MAX_RETRY_S, max(1, math.ceil(self.taken * self.seconds_per_image)))
            raise RefusalError(
                503,
                "busy",
                f"{self.taken} images are waiting already, of at most {self.most}",
                retry_after_s=wait_s,
            )

    def answered(self, compute_s: float) -> None:
        """Take note of the compute time of an image."""
        self.seconds_per_image += 0.1 * (compute_s - self.seconds_per_image)


class Room:
    """Images that are decoded, computed or encoded at a time. The size of an image is known when it is decoded.

    Args:
        images: Most images.
        undecoded: Most images of unknown size.
        max_bytes: Bytes of pixels beyond which no other image comes in; one always may.
    """

    def __init__(self, images: int, *, undecoded: int, max_bytes: int) -> None:
        self._images, self._undecoded, self._max_bytes = images, undecoded, max_bytes
        self.inside = self.unknown = self.size_bytes = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[Place]:
        """Wait for room, and hold a place within the block."""
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            self.inside += 1
            self.unknown += 1
        place = Place(self)
        try:
            yield place
        finally:
            self.inside -= 1
            self.unknown -= place.size_bytes is None
            self.size_bytes -= place.size_bytes or 0
            async with self._changed:
                self._changed.notify_all()

    async def note_size(self, size_bytes: int) -> None:
        """Count the pixels of an image whose size is known now."""
        self.unknown -= 1
        self.size_bytes += size_bytes
        async with self._changed:
            self._changed.notify_all()

    def _has_room(self) -> bool:
        is_small = self.size_bytes <= self._max_bytes
        return self.inside < self._images and self.unknown < self._undecoded and is_small


class Place:
    """Place of an image in a `Room`.

    Args:
        room: The room.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size_bytes: int | None = None
        """Bytes of the image's pixels; None before it is decoded."""

    async def hold(self, size_bytes: int) -> None:
        """Count the bytes of the image's pixels until it leaves."""
        self.size_bytes = size_bytes
        await self._room.note_size(size_bytes)
