"""Read COCO results (one RLE mask a class and image) as label maps."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.classes import ClassSet
from gmtool.errors import DataError, LabelError, needs_extra
from gmtool.images import UInt8Array
from gmtool.json_toml import read_json, shown
from gmtool.masks.coco_annotations import ImageId, checked_shapes
from gmtool.masks.files import refuse_mask_size

CocoResults = dict[ImageId, list[dict[str, Any]]]
"""Entries as in the file, by image id."""


def read_coco_results(path: Path) -> CocoResults:
    """Read a results file: a list of objects with `image_id`, `category_id` and `segmentation`.

    Raises:
        DataError: Not a COCO results file.
    """
    entries = read_json(path, what="a COCO results file", any_number=True)
    if isinstance(entries, dict) and "annotations" in entries:
        raise DataError(
            f"{path}: COCO annotations, but expected COCO results, a list of image_id, category_id, segmentation; "
            f"ground truth of this kind: --data FOLDER --layout coco --set data.val_annotations={path.resolve()}"
        )
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: not a COCO results file: expected a list of image_id, category_id, segmentation")
    by_image: CocoResults = defaultdict(list)
    for place, entry in enumerate(entries):
        for key, expected in (("image_id", (int, str)), ("category_id", (int,)), ("segmentation", (dict,))):
            if not isinstance(entry, dict) or type(entry.get(key)) not in expected:
                got = entry.get(key) if isinstance(entry, dict) else entry
                raise DataError(
                    f"{path} entry {place}: {key} is {shown(got)}; expected image_id, category_id "
                    "and segmentation as RLE"
                )
        by_image[entry["image_id"]].append(entry)
    return dict(by_image)


def paint_results(
    entries: list[dict[str, Any]], classes: ClassSet, *, where: str, expected: tuple[int, int] | None = None
) -> UInt8Array:
    """Return the label map of an image, (H, W) uint8 of class indices.

    Category ids are the raw ids of the classes. Pixels without mask are background, or `ignore_index` without a
    background class.

    Args:
        entries: Entries of the image, as in the file.
        classes: Classes of the categories.
        where: File and image, for messages.
        expected: (height, width) of its ground truth, compared before decoding; None if unknown.

    Raises:
        LabelError: A category outside the classes.
        DataError: A mask is damaged or has another size, or two masks overlap.
        MissingExtraError: pycocotools is not installed.
    """
    with needs_extra("serve", "reading COCO results"):
        from pycocotools import mask as coco_mask
    size = entries[0]["segmentation"].get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise DataError(f"{where}: its RLE has size {shown(size)}; expected [height, width]")
    refuse_mask_size((size[0], size[1]), expected, where=where)
    nothing = classes.ignore_index if classes.background is None else classes.background
    labels = np.full(size, nothing, dtype=np.uint8)
    taken = np.zeros(size, dtype=bool)
    for entry in entries:
        if entry["category_id"] not in classes.raw_ids:
            raise LabelError(f"{where} has category {shown(entry['category_id'])}, which is not a class")
        shapes = checked_shapes(entry["segmentation"], (size[0], size[1]), where=where)
        inside = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shapes, *size))).astype(bool)
        if (taken & inside).any():
            raise DataError(f"{where}: two of its masks overlap")
        taken |= inside
        labels[inside] = classes.raw_ids.index(entry["category_id"])
    return labels
