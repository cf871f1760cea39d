"""Memory shared with a decoding process, in slabs that become free when no array refers to them."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gmtool.images import UInt8Array

SLAB_BYTES = 24 << 20
"""Pixels of a slab, bytes: two batches of VOC for a GPU, or three images of Cityscapes. Memory is taken only where
it is written."""
SLABS = 8
"""Slabs of a process: more than there are chunks from decoding to the end of computing, if images are small."""


@dataclass(frozen=True)
class Slab:
    """Part of the shared memory that one chunk of images is decoded into."""

    start: int
    """Offset in the shared memory, bytes."""
    memory: UInt8Array
    """(SLAB_BYTES,): arrays in it keep the slab."""

    def array(self, place: int, shape: tuple[int, ...]) -> UInt8Array:
        """Return the array of a shape at an offset in the slab, bytes; it is not copied.

        Raises:
            ValueError: It does not lie in the slab.
        """
        size = math.prod(shape)
        if place < 0 or min(shape) < 1 or place + size > len(self.memory):
            raise ValueError(f"{shape} at {place}: outside of shared memory")
        return self.memory[place : place + size].reshape(shape)


class SharedMemory:
    """Shared memory of one decoding process; its file descriptor is inherited by the child.

    Only Linux has files that lie in memory alone and whose size no mount limits; elsewhere there are no slabs.
    """

    def __init__(self) -> None:
        self.descriptor = -1
        """Inherited by the child; -1: no shared memory."""
        self._free: list[int] = []
        with contextlib.suppress(AttributeError, OSError):
            self.descriptor = os.memfd_create("gmtool-images")
            os.ftruncate(self.descriptor, SLABS * SLAB_BYTES)
            self._map = mmap.mmap(self.descriptor, SLABS * SLAB_BYTES)
            self._free = [number * SLAB_BYTES for number in range(SLABS)]

    def take(self) -> Slab | None:
        """Return a free slab, the last used one first; None if there is none."""
        if not self._free:
            return None
        start = self._free.pop()
        memory = np.frombuffer(self._map, dtype=np.uint8, count=SLAB_BYTES, offset=start)
        # Views of `memory` refer to it, so this runs when the last of them is gone, in any thread
        weakref.finalize(memory, self._free.append, start).atexit = False
        return Slab(start, memory)

    def close(self) -> None:
        """Close the descriptor; the memory goes with the last array in it."""
        self._free = []
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def side_by_side(images: Sequence[UInt8Array]) -> UInt8Array | None:
    """Return images of one shape as one array (N, ...) without copying; None if they do not lie side by side."""
    first = images[0]
    if len(images) == 1:
        return first[None]
    address = first.__array_interface__["data"][0]
    for number, image in enumerate(images):
        if image.base is None or image.base is not first.base or image.shape != first.shape:
            return None
        if image.__array_interface__["data"][0] != address + number * first.nbytes or not image.flags.c_contiguous:
            return None
    return np.lib.stride_tricks.as_strided(first, (len(images), *first.shape), (first.nbytes, *first.strides))
