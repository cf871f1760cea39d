"""Pre-annotation of one image: its parts as outlines, from which each tool's file is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gmtool.classes import ClassSet
from gmtool.errors import DataError
from gmtool.images import UInt8Array
from gmtool.json_toml import parse_json
from gmtool.labels.fill import fill
from gmtool.labels.outlines import OutlineOptions, Part, outline_parts
from gmtool.labels.shapes import Polygon

DIGITS = 2
"""Decimal places of coordinates in pixels; those of outlines are whole."""


@dataclass(frozen=True)
class Piece:
    """Outlines of one image."""

    image: str
    """Relative path of the image with suffix, forward slashes."""
    height: int
    width: int
    parts: tuple[tuple[str, Part], ...]
    """(class name, part), in the order in which they are drawn."""

    def to_json(self) -> bytes:
        """Return the piece as JSON, for `from_json`."""
        parts = [
            [name, part.label, part.area_px, [ring.tolist() for ring in part.rings]] for name, part in self.parts
        ]
        value = {"image": self.image, "size": [self.height, self.width], "parts": parts}
        return json.dumps(value).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes, *, where: str) -> Piece:
        """Return the piece that `to_json` wrote.

        Raises:
            DataError: Not such a piece.
        """
        value = parse_json(content, where=where, what="outlines of an image")
        try:
            parts = tuple(
                (name, Part(index, tuple(np.array(ring, dtype=np.float64) for ring in rings), area))
                for name, index, area, rings in value["parts"]
            )
            height, width = value["size"]
            return cls(value["image"], height, width, parts)
        except (KeyError, TypeError, ValueError) as error:
            line = f"{where}: not the outlines of an image: delete it, and predict again with --resume"
            raise DataError(line) from error


def make_piece(
    image: str, mask: UInt8Array, classes: ClassSet, options: OutlineOptions, confidence: UInt8Array | None = None
) -> Piece:
    """Return the outlines of a predicted mask, without the background and ignored pixels.

    Args:
        image: Relative path of the image with suffix.
        mask: Class indices, (H, W).
        classes: Classes of the mask.
        options: Detail.
        confidence: Largest probability times 255, (H, W); pixels below `options.min_confidence` get no label.
    """
    if options.min_confidence > 0 and confidence is not None:
        unsure = confidence < 255 * options.min_confidence
        mask = np.where(unsure, np.uint8(classes.ignore_index), mask).astype(np.uint8)
    wanted = [index for index in range(len(classes)) if index != classes.background]
    parts = outline_parts(mask, wanted, options)
    return Piece(image, mask.shape[0], mask.shape[1], tuple((classes.names[part.label], part) for part in parts))


def mask_of(part: Part, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels of a part, (H, W), for tools whose polygons have no holes."""
    mask = np.zeros(size, dtype=bool)
    spans = fill(Polygon(part.rings), size)
    if spans is not None:
        for row, start, stop in zip(spans.rows.tolist(), spans.starts.tolist(), spans.stops.tolist(), strict=True):
            mask[row, start:stop] = True
    return mask


def run_lengths(flat: npt.NDArray[np.bool_]) -> list[int]:
    """Return alternating numbers of pixels outside and inside, beginning outside, up to the end."""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return [0, *counts] if len(flat) and flat[0] else counts


def rounded(ring: npt.NDArray[np.float64], digits: int = DIGITS) -> Iterator[list[float]]:
    """Return points as lists of rounded numbers."""
    for x, y in ring.tolist():
        yield [round(x, digits), round(y, digits)]
