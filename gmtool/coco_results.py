"""COCO results: one run-length mask a class and image, as one label map an image."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.classes import ClassSet
from gmtool.coco import ImageId, checked_shapes
from gmtool.errors import DataError, LabelError, needs_extra
from gmtool.images import UInt8Array

CocoResults = dict[ImageId, list[dict[str, Any]]]
"""The entries of each image, as they stand in the file."""


def read_coco_results(path: Path) -> CocoResults:
    """Read a results file: a list of objects with `image_id`, `category_id` and `segmentation`.

    Raises:
        DataError: Not such a file.
    """
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a COCO results file: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: not a COCO results file: expected a list of image_id, category_id, segmentation")
    by_image: CocoResults = defaultdict(list)
    for place, entry in enumerate(entries):
        for key, expected in (("image_id", (int, str)), ("category_id", int), ("segmentation", dict)):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), expected):
                got = entry.get(key) if isinstance(entry, dict) else entry
                raise DataError(
                    f"{path} entry {place}: {key} is {str(got)[:60]!r}; expected image_id, category_id "
                    "and segmentation as RLE"
                )
        by_image[entry["image_id"]].append(entry)
    return dict(by_image)


def paint_results(entries: list[dict[str, Any]], classes: ClassSet, *, where: str) -> UInt8Array:
    """Return the label map of an image, (H, W) uint8 of class indices.

    Category ids are the classes' raw ids. Pixels in no mask are background, or `ignore_index` (no class) where
    there is no such class.

    Raises:
        LabelError: A category that is none of the classes.
        DataError: A mask is damaged or of another size than the first, or two of them overlap.
        MissingExtraError: pycocotools is not installed.
    """
    with needs_extra("serve", "reading COCO results"):
        from pycocotools import mask as coco_mask
    size = entries[0]["segmentation"].get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise DataError(f"{where}: its RLE has size {size!r}; expected [height, width]")
    nothing = classes.ignore_index if classes.background is None else classes.background
    labels = np.full(size, nothing, dtype=np.uint8)
    taken = np.zeros(size, dtype=bool)
    for entry in entries:
        if entry["category_id"] not in classes.raw_ids:
            raise LabelError(f"{where} has category {entry['category_id']}, which the classes have not")
        shapes = checked_shapes(entry["segmentation"], (size[0], size[1]), where=where)
        inside = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shapes, *size))).astype(bool)
        if (taken & inside).any():
            raise DataError(f"{where}: two of its masks overlap: which of the classes is meant?")
        taken |= inside
        labels[inside] = classes.raw_ids.index(entry["category_id"])
    return labels
