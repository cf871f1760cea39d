"""Write labelme's JSON file of one image."""

from __future__ import annotations

import json
from typing import Any

from gmtool.labels.outlines import join_holes
from gmtool.labels.writers.piece import Piece, rounded

VERSION = "5.4.1"
"""Version of labelme's format, which it checks for a warning alone."""


def labelme_json(piece: Piece, image_path: str) -> bytes:
    """Return the file as labelme saves it, with the path of the image relative to it.

    A part with holes is one polygon that runs into each hole and back: labelme's polygons have no holes, and its
    masks cannot be corrected by hand.
    """
    shapes: list[dict[str, Any]] = [
        {
            "label": name,
            "points": list(rounded(join_holes(part.rings))),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for name, part in piece.parts
    ]
    value: dict[str, Any] = {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": piece.height,
        "imageWidth": piece.width,
    }
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
