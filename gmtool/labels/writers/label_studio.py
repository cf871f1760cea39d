"""Write Label Studio's tasks with predictions: polygons, and brush strokes of parts with holes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from gmtool.classes import ClassSet
from gmtool.labels.brush import encode_brush
from gmtool.labels.outlines import Part
from gmtool.labels.writers.piece import Piece, mask_of

LOCAL_FILES = "/data/local-files/?d="
"""Address under which Label Studio serves files of its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""
DIGITS = 7
POLYGONS, BRUSH, IMAGE = "polygon", "brush", "image"
"""Names of the controls in `label_config`."""


def write_label_studio(file: BinaryIO, pieces: Callable[[], Iterator[Piece]], classes: ClassSet) -> None:
    """Write tasks.json; the images are named as files of Label Studio's local storage."""
    del classes
    separator = b"[\n"
    for piece in pieces():
        result = [_region(name, part, piece, number) for number, (name, part) in enumerate(piece.parts)]
        address = LOCAL_FILES + quote(piece.image, errors="surrogateescape")
        task = {"data": {"image": address}, "predictions": [{"model_version": "gmtool", "result": result}]}
        file.write(separator + json.dumps(task).encode())
        separator = b",\n"
    file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def label_config(classes: ClassSet) -> bytes:
    """Return the labeling interface that the tasks need: polygons and a brush with the same labels."""
    lines = [f'<View>\n  <Image name="{IMAGE}" value="$image" zoom="true"/>']
    for tag, name in (("PolygonLabels", POLYGONS), ("BrushLabels", BRUSH)):
        lines.append(f'  <{tag} name="{name}" toName="{IMAGE}">')
        for index, (label, (red, green, blue)) in enumerate(zip(classes.names, classes.palette, strict=True)):
            if index != classes.background:
                color = f"#{red:02x}{green:02x}{blue:02x}"
                lines.append(f'    <Label value={quoteattr(label)} background="{color}"/>')
        lines.append(f"  </{tag}>")
    return "\n".join([*lines, "</View>\n"]).encode("utf-8", "replace")


def _region(name: str, part: Part, piece: Piece, number: int) -> dict[str, Any]:
    text = f"{piece.image} {number}".encode("utf-8", "surrogateescape")
    region: dict[str, Any] = {
        "id": hashlib.sha256(text).hexdigest()[:10],
        "to_name": IMAGE,
        "original_width": piece.width,
        "original_height": piece.height,
        "image_rotation": 0,
    }
    if len(part.rings) == 1:
        points = part.rings[0] * (100 / piece.width, 100 / piece.height)
        rounded = [[round(x, DIGITS), round(y, DIGITS)] for x, y in points.tolist()]
        value: dict[str, Any] = {"points": rounded, "closed": True, "polygonlabels": [name]}
        return region | {"from_name": POLYGONS, "type": "polygonlabels", "value": value}
    rle = encode_brush(mask_of(part, (piece.height, piece.width)))
    value = {"format": "rle", "rle": rle, "brushlabels": [name]}
    return region | {"from_name": BRUSH, "type": "brushlabels", "value": value}
