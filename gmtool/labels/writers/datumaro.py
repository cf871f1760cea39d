"""Write Datumaro's JSON of one subset: polygons, and masks of parts with holes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from gmtool.classes import ClassSet
from gmtool.errors import needs_extra
from gmtool.labels.outlines import Part
from gmtool.labels.writers.piece import Piece, mask_of, rounded

FORMAT = "1.0"


def write_datumaro(file: BinaryIO, pieces: Callable[[], Iterator[Piece]], classes: ClassSet) -> None:
    """Write an annotation file; Datumaro looks for its images in `images/` and the file's name.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """
    names = [name for index, name in enumerate(classes.names) if index != classes.background]
    ids = {name: number for number, name in enumerate(names)}
    labels = [{"name": name, "parent": "", "attributes": []} for name in ids]
    head = {
        "dm_format_version": FORMAT,
        "media_type": 2,
        "infos": {},
        "categories": {"label": {"labels": labels, "label_groups": [], "attributes": []}},
    }
    file.write(json.dumps(head).encode()[:-1] + b', "items": [')
    separator = b"\n"
    for piece in pieces():
        shapes = [_shape(ids[name], part, piece, number) for number, (name, part) in enumerate(piece.parts)]
        item = {
            "id": PurePosixPath(piece.image).with_suffix("").as_posix(),
            "annotations": shapes,
            "image": {"path": piece.image, "size": [piece.height, piece.width]},
        }
        file.write(separator + json.dumps(item).encode())
        separator = b",\n"
    file.write(b"\n]}\n")


def _shape(label: int, part: Part, piece: Piece, number: int) -> dict[str, Any]:
    shape: dict[str, Any] = {"id": number, "attributes": {}, "group": 0, "label_id": label, "z_order": number}
    if len(part.rings) == 1:
        points = [value for point in rounded(part.rings[0]) for value in point]
        return shape | {"type": "polygon", "points": points}
    with needs_extra("serve", "writing Datumaro's masks"):
        from pycocotools import mask as coco_mask
    mask = mask_of(part, (piece.height, piece.width))
    region = coco_mask.encode(mask.astype("uint8", order="F"))
    rle = {"counts": region["counts"].decode("ascii"), "size": [piece.height, piece.width]}
    return shape | {"type": "mask", "rle": rle}
