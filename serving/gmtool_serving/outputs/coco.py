"""COCO results of a mask: one run-length encoded region a class."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import numpy as np

from gmtool.classes import ClassSet
from gmtool.errors import DataError, needs_extra
from gmtool.images import UInt8Array
from gmtool.masks.coco_annotations import ImageId

EMPTY = b"[\n]\n"
"""Empty JSON list."""
SCORE = 1.0
"""Score of every entry: COCOeval needs one, though with one entry a class there is nothing to rank."""


def image_id_of(output: PurePosixPath, coco_id: ImageId | None) -> ImageId:
    """Return the image id in results: COCO's own, else the file name if it is a number, else the relative path."""
    if coco_id is not None:
        return coco_id
    is_number = output.name.isascii() and output.name.isdigit() and len(output.name) <= 18
    return int(output.name) if is_number else str(output)


def encode_entries(mask: UInt8Array, image_id: ImageId, classes: ClassSet) -> bytes:
    """Return the result entries of one image as a JSON list, one a line and one a class, as in COCO-Stuff.

    Args:
        mask: Class indices, (H, W) uint8. Ignored pixels and the background (`classes.background`) are left out.
        image_id: The image's id.
        classes: Classes; their `raw_ids` are the category ids.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """
    with needs_extra("serve", "writing COCO results"):
        from pycocotools import mask as coco_mask
    by_column = np.asfortranarray(mask)  # pycocotools needs column order, which comparisons keep
    lines = []
    for index in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist():
        if index >= len(classes) or index == classes.background:
            continue
        region = coco_mask.encode((by_column == index).view(np.uint8))
        entry = {
            "image_id": image_id,
            "category_id": classes.raw_ids[index],
            "segmentation": {"size": list(mask.shape), "counts": region["counts"].decode("ascii")},
            "score": SCORE,
        }
        lines.append(json.dumps(entry))
    return b"[\n" + ",\n".join(lines).encode() + b"\n]\n" if lines else EMPTY


def entries_of(content: bytes, *, where: Path) -> list[bytes]:
    """Return the entries that `encode_entries` wrote, one JSON object each.

    Raises:
        DataError: The content was not written by `encode_entries`.
    """
    lines = content.splitlines()
    if len(lines) < 2 or lines[0] != b"[" or lines[-1] != b"]":
        raise DataError(f"{where}: not the COCO results of an image: delete it, and predict again with --resume")
    return [line.removesuffix(b",") for line in lines[1:-1]]
