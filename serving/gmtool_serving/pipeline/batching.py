"""Which images are computed together: those of one size, in the order of the inputs, whatever the timing."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Grouper(Generic[T]):
    """Collects items of one kind into batches.

    The batches follow from the order of the items alone, so a run that is repeated computes the same ones.

    Args:
        batch: Items of a full batch.
        max_waiting: Items that wait for others of their kind; beyond that the kind of the oldest one goes.
        kind: What items of a batch have in common; None for an item that is computed alone.
    """

    def __init__(self, batch: int, *, max_waiting: int, kind: Callable[[T], Hashable | None]) -> None:
        self._batch, self._max_waiting, self._kind = batch, max_waiting, kind
        self._waiting: dict[Hashable, list[T]] = {}  # kinds in the order of their oldest item

    def add(self, item: T) -> list[list[T]]:
        """Take an item; return the batches that are to be computed now."""
        kind = self._kind(item)
        if kind is None:
            return [[item]]
        group = self._waiting.setdefault(kind, [])
        group.append(item)
        if len(group) >= self._batch:
            return [self._waiting.pop(kind)]
        if sum(map(len, self._waiting.values())) > self._max_waiting:
            return [self._waiting.pop(next(iter(self._waiting)))]
        return []

    def flush(self) -> list[list[T]]:
        """Return what is left, as batches that are not full."""
        batches = list(self._waiting.values())
        self._waiting.clear()
        return batches


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Return the size rounded up to a multiple of so many pixels; as it is for 0."""
    if multiple == 0:
        return height, width
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple
