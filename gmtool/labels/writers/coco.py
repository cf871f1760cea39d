"""Write COCO annotations: polygons, and run lengths of parts with holes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from gmtool.classes import ClassSet
from gmtool.labels.outlines import Part
from gmtool.labels.writers.piece import Piece, mask_of, rounded, run_lengths


def write_coco(file: BinaryIO, pieces: Callable[[], Iterator[Piece]], classes: ClassSet) -> None:
    """Write an annotation file. Ids of images and annotations begin with 1, as CVAT and others expect.

    Run lengths are lists, not COCO's compressed text, which fewer tools read. The categories are all classes but
    the background, with their numbers as ids.
    """
    ids = {
        name: number
        for number, name in enumerate((n for i, n in enumerate(classes.names) if i != classes.background), start=1)
    }
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in ids.items()]
    file.write(b'{"info": {}, "licenses": [],\n"categories": ' + json.dumps(categories).encode())
    file.write(b',\n"images": [')
    separator = b"\n"
    for number, piece in enumerate(pieces(), start=1):
        image = {"id": number, "file_name": piece.image, "height": piece.height, "width": piece.width}
        file.write(separator + json.dumps(image).encode())
        separator = b",\n"
    file.write(b'\n],\n"annotations": [')
    separator, annotation = b"\n", 0
    for number, piece in enumerate(pieces(), start=1):
        for name, part in piece.parts:
            annotation += 1
            entry = {"id": annotation, "image_id": number, "category_id": ids[name], "iscrowd": 0}
            file.write(separator + json.dumps(entry | _outline(part, piece)).encode())
            separator = b",\n"
    file.write(b"\n]}\n")


def _outline(part: Part, piece: Piece) -> dict[str, Any]:
    low, high = part.rings[0].min(axis=0).tolist(), part.rings[0].max(axis=0).tolist()
    box = [low[0], low[1], high[0] - low[0], high[1] - low[1]]
    if len(part.rings) == 1:
        segmentation: Any = [[value for point in rounded(part.rings[0]) for value in point]]
    else:
        mask = mask_of(part, (piece.height, piece.width))
        segmentation = {"size": [piece.height, piece.width], "counts": run_lengths(mask.T.reshape(-1))}
    return {"segmentation": segmentation, "area": part.area_px, "bbox": box}
