"""Label map as runs of equal labels: a painted photo of millions of pixels has some thousands of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gmtool.images import UInt8Array


@dataclass(frozen=True)
class LabelRuns:
    """Label map (height, width) as the places where the label changes, row after row.

    Each row has a column of `ground` in front of its pixels, so that a run of another label never goes on in the
    next row, and so that PNG's rows, which begin with a byte of their own, have the same places.
    """

    size: tuple[int, int]
    """(height, width), pixels."""
    ground: int
    """Label before the first change, at the begin of each row."""
    starts: npt.NDArray[np.int64]
    """Places of changes, ascending: row * (width + 1) + column + 1."""
    labels: UInt8Array
    """Label from each place on."""

    def to_map(self) -> UInt8Array:
        """Return the label map, (H, W) uint8."""
        height, width = self.size
        bounds = np.concatenate([[0], self.starts, [height * (width + 1)]])
        labels = np.concatenate([np.array([self.ground], dtype=np.uint8), self.labels])
        return np.repeat(labels, np.diff(bounds)).reshape(height, width + 1)[:, 1:]

    def differences(self) -> tuple[npt.NDArray[np.int64], UInt8Array]:
        """Return places of pixels that differ from the one above, ascending, and the differences, modulo 256.

        Above the first row everything is `ground`.
        """
        # Not numpy.diff, which takes as long as all the rest with few runs
        places, width = self.starts, self.size[1] + 1
        whole = self.size[0] * width
        if not len(places):
            return places, self.labels
        steps = self.labels.copy()
        steps[:1] -= np.uint8(self.ground)  # of arrays: modulo 256
        steps[1:] -= self.labels[:-1]
        # A change in a row is one back in the row below
        inside = places.searchsorted(whole - width)
        places = np.concatenate([places, places[:inside] + width])
        order = places.argsort(kind="stable")  # two ascending parts: one merge
        places = places[order]
        values = np.concatenate([steps, -steps[:inside]])[order].cumsum(dtype=np.uint8)
        counts = np.empty_like(places)
        np.subtract(places[1:], places[:-1], out=counts[:-1])
        counts[-1] = whole - places[-1]
        # The few pixels that differ
        some = np.flatnonzero(values.astype(bool) & (counts > 0))
        counts = counts[some]
        return ranges(places[some], counts), values[some].repeat(counts)


def ranges(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the whole numbers of ranges, one after the other."""
    ends = counts.cumsum()
    offsets: npt.NDArray[np.int64] = (starts - ends + counts).repeat(counts)
    return offsets + np.arange(len(offsets))
