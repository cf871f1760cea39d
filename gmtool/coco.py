"""COCO annotation files: what they list, and an image's objects as one label map."""

from __future__ import annotations

import json
import math
import pickle
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.classes import ClassSet, read_categories
from gmtool.errors import DataError, LabelError, did_you_mean, needs_extra
from gmtool.images import UInt8Array

MAX_COORDINATE = 1e6
"""Larger coordinates of a polygon are a mistake, and would take pycocotools' memory."""

ImageId = int | str


@dataclass(frozen=True)
class CocoImage:
    """One image that an annotation file lists."""

    id: ImageId
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class CocoMask:
    """The annotations of one image. Nothing is rasterised before `rasterize`."""

    path: Path
    """The annotation file, for messages."""
    image_id: ImageId
    height: int
    width: int
    objects: bytes
    """Pickled (annotation id, class name, segmentation) of each object: one block of bytes is a quarter of the
    lists of numbers, and stays shared with forked worker processes."""

    def __str__(self) -> str:
        """Return the file and the image, as messages name a mask."""
        return f"{self.path} image {self.image_id}"


@dataclass(frozen=True)
class CocoFile:
    """The content of an annotation file, as far as label maps need it."""

    path: Path
    categories: dict[int, str]
    """Name by category id."""
    images: tuple[CocoImage, ...]
    annotations: dict[ImageId, list[dict[str, Any]]]
    """As they stand in the file, by image id."""

    def mask_of(self, image: CocoImage) -> CocoMask:
        """Return the annotations of one image; an image without any is background alone."""
        objects = [
            (item["id"], self.categories[item["category_id"]], item.get("segmentation"))
            for item in self.annotations.get(image.id, [])
        ]
        return CocoMask(self.path, image.id, image.height, image.width, pickle.dumps(objects))


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file. Segmentations are checked when they are rasterised.

    Raises:
        DataError: Not such a file, a missing key, an id twice, or an annotation of an unknown image or category.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a COCO annotation file: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a COCO annotation file: expected an object with images and annotations")
    categories = read_categories(value, where=str(path))
    images = tuple(_read_image(item, where=f"{path} image") for item in _list_of(value, "images", path))
    known = {image.id for image in images}
    if len(known) < len(images):
        raise DataError(f"{path}: {len(images) - len(known)} images have the id of another")
    by_image: dict[ImageId, list[dict[str, Any]]] = defaultdict(list)
    for item in _list_of(value, "annotations", path):
        _check_annotation(item, known, categories, where=f"{path} annotation")
        by_image[item["image_id"]].append(item)
    return CocoFile(path, categories, images, dict(by_image))


def rasterize(mask: CocoMask, classes: ClassSet) -> UInt8Array:
    """Return the label map of an image, (H, W) uint8 of class indices.

    Larger objects are painted first, so that smaller ones stay visible; of two of one size, the one with the
    lower annotation id. Crowd regions count as their class. What no object covers has index
    `classes.background`, or is ignored where there is no such class.

    Raises:
        DataError: A segmentation is damaged or of another size, or a category is not one of the classes.
        MissingExtraError: pycocotools is not installed.
    """
    with needs_extra("serve", "reading COCO annotations"):
        from pycocotools import mask as coco_mask
    size = (mask.height, mask.width)
    painted = []
    for annotation_id, name, segmentation in pickle.loads(mask.objects):
        where = f"{mask.path} annotation {annotation_id} (image {mask.image_id})"
        if name not in classes.names:
            raise LabelError(f"{where} is of category {name}, which the classes have not{_known(name, classes)}")
        shapes = checked_shapes(segmentation, size, where=where)
        if shapes:
            run_lengths = coco_mask.merge(coco_mask.frPyObjects(shapes, *size))
            painted.append(
                (-int(coco_mask.area(run_lengths)), annotation_id, classes.names.index(name), run_lengths)
            )
    nothing = classes.ignore_index if classes.background is None else classes.background
    labels = np.full(size, nothing, dtype=np.uint8)
    for _, _, index, run_lengths in sorted(painted, key=lambda item: item[:2]):
        labels[coco_mask.decode(run_lengths).astype(bool)] = index
    return labels


def checked_shapes(segmentation: Any, size: tuple[int, int], *, where: str) -> list[Any]:
    """Return what pycocotools takes: polygons, or one uncompressed RLE. It checks nothing itself."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            raise DataError(f"{where}: its RLE has size {segmentation.get('size')}, but the image {list(size)}")
        counts = segmentation.get("counts")
        counts = _decompress(counts, where=where) if isinstance(counts, str) else counts
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            raise DataError(f"{where}: the counts of its RLE are damaged")
        if sum(counts) != size[0] * size[1]:
            raise DataError(f"{where}: its RLE counts {sum(counts)} pixels, but the image has {size[0] * size[1]}")
        return [{"size": list(size), "counts": counts}]
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"{where} has no segmentation: a box alone gives no mask")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(_is_coordinate, polygon)):
            raise DataError(f"{where}: a polygon is not a list of x, y, x, y, ...")
    return [polygon for polygon in segmentation if len(polygon) >= 6]  # two points cover nothing


def _decompress(text: str, *, where: str) -> list[int]:
    """Return the run lengths in COCO's own compression: 5 bits a character, and from the third run on only the
    difference to the last but one. pycocotools would write past its buffer where a string is damaged.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise DataError(f"{where}: its compressed RLE is damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError(f"{where}: its compressed RLE is damaged: it ends too early")
    return counts


def _is_coordinate(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MAX_COORDINATE


def _known(name: str, classes: ClassSet) -> str:
    return did_you_mean(name, classes.names) if len(classes) <= 20 else " (--classes names them)"


def _list_of(value: dict[str, Any], key: str, path: Path) -> list[Any]:
    if not isinstance(value.get(key), list):
        raise DataError(f'{path}: not a COCO annotation file: expected a list "{key}"')
    found: list[Any] = value[key]
    return found


def _read_image(item: Any, *, where: str) -> CocoImage:
    where = _named(item, where)
    for key, expected in (("id", (int, str)), ("file_name", str), ("height", int), ("width", int)):
        if not isinstance(item.get(key), expected):
            raise DataError(f"{where}: {key} is {item.get(key)!r}; expected {_type_name(expected)}")
    if min(item["height"], item["width"]) < 1:
        raise DataError(f"{where} is {item['width']}x{item['height']}")
    parts = Path(item["file_name"]).parts
    if not parts or ".." in parts or Path(item["file_name"]).is_absolute():
        raise DataError(f"{where}: file_name {item['file_name']!r} is not a path inside the image folder")
    return CocoImage(item["id"], item["file_name"], item["height"], item["width"])


def _check_annotation(item: Any, images: set[ImageId], categories: dict[int, str], *, where: str) -> None:
    where = _named(item, where)
    for key, expected in (("id", int), ("image_id", (int, str)), ("category_id", int)):
        if not isinstance(item.get(key), expected):
            raise DataError(f"{where}: {key} is {item.get(key)!r}; expected {_type_name(expected)}")
    if item["image_id"] not in images:
        raise DataError(f"{where} is of image {item['image_id']}, which the file does not list")
    if item["category_id"] not in categories:
        raise DataError(f"{where} is of category {item['category_id']}, which the file does not list")


def _named(item: Any, where: str) -> str:
    if not isinstance(item, dict):
        raise DataError(f"{where} {item!r}: expected an object")
    return f"{where} {item.get('id')}"


def _type_name(expected: Any) -> str:
    return "text" if expected is str else "a whole number"
