"""Which part of a job one of several machines does."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from gmtool.errors import UsageError
from gmtool_serving.inputs.collect import InputImage


@dataclass(frozen=True)
class Shard:
    """One of the equal parts of a job."""

    number: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `2/4`.

        Raises:
            UsageError: Not a part of a whole.
        """
        first, slash, second = text.partition("/")
        if slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
            return cls(int(first), int(second))
        raise UsageError(f"--shard {text}: expected NUMBER/COUNT, from 1/COUNT to COUNT/COUNT")

    def __str__(self) -> str:
        """Return it as file names have it."""
        return f"{self.number}-of-{self.count}"

    def holds(self, image: InputImage) -> bool:
        """Return whether an image belongs to this part.

        By a hash of its output's name: images may come and go without moving others, and machines need not agree
        on an order. All frames of a video go together, since a video is decoded from its beginning.
        """
        name = str(image.output) if image.frame is None else image.path.name
        digest = hashlib.sha256(os.fsencode(name)).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1
