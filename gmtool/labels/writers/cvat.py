"""Write CVAT's "CVAT for images" XML: polygons, and masks of parts with holes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from gmtool.classes import ClassSet
from gmtool.labels.outlines import Part
from gmtool.labels.writers.piece import Piece, mask_of, rounded, run_lengths


def write_cvat(file: BinaryIO, pieces: Callable[[], Iterator[Piece]], classes: ClassSet) -> None:
    """Write annotations.xml. Every connected part is a shape of its own.

    Args:
        file: Receives the XML.
        pieces: Returns the images from the first.
        classes: Labels of the task; without the background.
    """

    def put(text: str) -> None:
        file.write(text.encode("utf-8", "replace"))

    put('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
    put("<meta>\n<task>\n<labels>\n")
    for index, (name, (red, green, blue)) in enumerate(zip(classes.names, classes.palette, strict=True)):
        if index != classes.background:
            color = f"#{red:02x}{green:02x}{blue:02x}"
            put(
                f"<label>\n<name>{escape(name)}</name>\n<color>{color}</color>\n<attributes></attributes>\n</label>\n"
            )
    put("</labels>\n</task>\n</meta>\n")
    for number, piece in enumerate(pieces()):
        size = f'width="{piece.width}" height="{piece.height}"'
        put(f'<image id="{number}" name={quoteattr(piece.image)} {size}>\n')
        for order, (name, part) in enumerate(piece.parts):
            put(_shape(name, part, piece, order))
        put("</image>\n")
    put("</annotations>\n")


def _shape(name: str, part: Part, piece: Piece, order: int) -> str:
    common = f'label={quoteattr(name)} source="auto" occluded="0" z_order="{order}"'
    if len(part.rings) == 1:
        points = ";".join(f"{x:g},{y:g}" for x, y in rounded(part.rings[0]))
        return f'<polygon {common} points="{points}"></polygon>\n'
    mask = mask_of(part, (piece.height, piece.width))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    box = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    counts = ", ".join(map(str, run_lengths(box.reshape(-1))))
    place = f'left="{left}" top="{top}" width="{box.shape[1]}" height="{box.shape[0]}"'
    return f'<mask {common} rle="{counts}" {place}></mask>\n'
