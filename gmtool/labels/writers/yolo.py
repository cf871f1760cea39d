"""Write YOLO's segmentation labels: one text file an image, and data.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterable

from gmtool.classes import ClassSet
from gmtool.labels.outlines import join_holes
from gmtool.labels.writers.piece import Piece

DIGITS = 7
"""Decimal places of coordinates, which are shares of the image: a thousandth of a pixel in 10 000."""


def yolo_text(piece: Piece, classes: ClassSet) -> bytes:
    """Return a line a part: class number and x, y of each point as shares of width and height.

    A part with holes is one polygon that runs into each hole and back. Class numbers leave out the background.
    """
    numbers = {name: number for number, name in enumerate(yolo_names(classes))}
    lines = []
    for name, part in piece.parts:
        points = join_holes(part.rings) / (piece.width, piece.height)
        lines.append(" ".join([str(numbers[name]), *(f"{value:.{DIGITS}g}" for value in points.ravel().tolist())]))
    return "".join(f"{line}\n" for line in lines).encode()


def yolo_names(classes: ClassSet) -> list[str]:
    """Return the classes in YOLO's order."""
    return [name for index, name in enumerate(classes.names) if index != classes.background]


def data_yaml(classes: ClassSet, folders: Iterable[str] = ("images/train",)) -> bytes:
    """Return data.yaml; names are quoted as JSON, which YAML reads."""
    lines = ["path: .", *(f"train: {folder}" for folder in folders), "names:"]
    lines += [f"  {number}: {json.dumps(name)}" for number, name in enumerate(yolo_names(classes))]
    return "".join(f"{line}\n" for line in lines).encode()
