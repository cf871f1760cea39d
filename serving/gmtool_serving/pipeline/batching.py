"""Group images of one size into batches, in input order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from typing import Generic, TypeVar

T = TypeVar("T")


class Grouper(Generic[T]):
    """Groups items of one kind into batches.

    Batches depend on the order of the items alone, not on timing: a repeated run computes the same ones.

    Args:
        batch: Items of a full batch.
        max_waiting: Maximum of items that wait for others of their kind; beyond it the oldest kind is emitted.
        kind: Returns the key that items of a batch share; None for an item that is computed alone.
    """

    def __init__(self, batch: int, *, max_waiting: int, kind: Callable[[T], Hashable | None]) -> None:
        self._batch, self._max_waiting, self._kind = batch, max_waiting, kind
        self._waiting: dict[Hashable, list[T]] = {}  # kinds in the order of their oldest item

    def add(self, item: T) -> list[list[T]]:
        """Add an item; return the batches that are complete now."""
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

    def waiting(self) -> Iterator[T]:
        """Yield the items that wait for others of their kind."""
        return chain.from_iterable(self._waiting.values())

    def flush(self) -> list[list[T]]:
        """Return the waiting items as incomplete batches."""
        batches = list(self._waiting.values())
        self._waiting.clear()
        return batches


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Return height and width rounded up to `multiple` pixels; unchanged for 0."""
    if multiple == 0:
        return height, width
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple
