"""One shard of a prediction job."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from gmtool.errors import UsageError
from gmtool_serving.inputs.collect import InputImage


@dataclass(frozen=True)
class Shard:
    """One of `count` equal shards of a job."""

    number: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse `NUMBER/COUNT`, such as `2/4`.

        Raises:
            UsageError: Not such a pair, or NUMBER is outside 1 to COUNT.
        """
        first, slash, second = text.partition("/")
        if slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
            return cls(int(first), int(second))
        raise UsageError(f"--shard {text}: expected NUMBER/COUNT, from 1/COUNT to COUNT/COUNT")

    def __str__(self) -> str:
        """Return the shard as in file names: `2-of-4`."""
        return f"{self.number}-of-{self.count}"

    def holds(self, image: InputImage) -> bool:
        """Return whether an image belongs to this shard.

        Decided by a hash of the output name: adding or removing images does not move others, and machines need not
        agree on an order. All frames of a video share a shard, since a video is decoded from its beginning.
        """
        name = str(image.output) if image.frame is None else image.path.name
        digest = hashlib.sha256(os.fsencode(name)).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1
