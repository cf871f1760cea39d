"""Read COCO annotation files; rasterise the objects of an image into a label map."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.classes import ClassSet, read_categories
from gmtool.errors import DataError, LabelError, MaskSizeError, did_you_mean, needs_extra
from gmtool.images import UInt8Array
from gmtool.json_toml import read_json, shown

MAX_COORDINATE = 1e6
"""Largest polygon coordinate; larger ones are errors and would exhaust memory in pycocotools."""
MAX_OUTLINE_PX = 5_000_000
"""Largest length of all outlines of an image, in pixels; pycocotools needs 80 bytes for each."""

ImageId = int | str


@dataclass(frozen=True)
class CocoImage:
    """Image entry of an annotation file."""

    id: ImageId
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class CocoMask:
    """Annotations of one image, rasterised by `rasterize`."""

    path: Path
    """Annotation file, for messages."""
    image_id: ImageId
    height: int
    width: int
    objects: bytes
    """(annotation id, class name, segmentation) of each object as JSON: bytes need a quarter of the memory of
    lists and stay shared with forked worker processes."""

    def __str__(self) -> str:
        """Return file and image, for messages."""
        return f"{self.path} image {self.image_id}"


@dataclass(frozen=True)
class CocoFile:
    """Images, categories and annotations of an annotation file."""

    path: Path
    categories: dict[int, str]
    """Name by category id."""
    images: tuple[CocoImage, ...]
    annotations: dict[ImageId, list[dict[str, Any]]]
    """Annotations as in the file, by image id."""

    def mask_of(self, image: CocoImage) -> CocoMask:
        """Return the annotations of one image; without annotations it is background."""
        objects = [
            (item["id"], self.categories[item["category_id"]], item.get("segmentation"))
            for item in self.annotations.get(image.id, [])
        ]
        return CocoMask(self.path, image.id, image.height, image.width, json.dumps(objects).encode())


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file. Segmentations are checked when they are rasterised.

    Raises:
        DataError: Not an annotation file, a missing key, a duplicate id, or an unknown image or category.
    """
    value = read_json(path, what="a COCO annotation file", any_number=True)
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a COCO annotation file: expected an object with images and annotations")
    categories = read_categories(value, where=str(path))
    images = tuple(_read_image(item, where=f"{path} image") for item in _list_of(value, "images", path))
    known = {image.id for image in images}
    if len(known) < len(images):
        raise DataError(f"{path}: {len(images) - len(known)} images have the id of another")
    by_image: dict[ImageId, list[dict[str, Any]]] = defaultdict(list)
    for place, item in enumerate(_list_of(value, "annotations", path)):
        if isinstance(item, dict) and "id" not in item:  # some tools number images and categories alone
            item["id"] = place
        _check_annotation(item, known, categories, where=f"{path} annotation")
        by_image[item["image_id"]].append(item)
    return CocoFile(path, categories, images, dict(by_image))


def rasterize(mask: CocoMask, classes: ClassSet) -> UInt8Array:
    """Return the label map of an image, (H, W) uint8 of class indices.

    Larger objects are painted first, so that smaller ones stay visible; objects of equal size in the order of
    their annotation ids. Crowd regions count as their class. Pixels without object are `classes.background`, or
    ignored without a background class.

    Raises:
        DataError: A segmentation is damaged or of another size, or a category is not one of the classes.
        MissingExtraError: pycocotools is not installed.
    """
    with needs_extra("serve", "reading COCO annotations"):
        from pycocotools import mask as coco_mask
    # Run lengths of each object
    size = (mask.height, mask.width)
    painted = []
    outline_px = 0.0
    for annotation_id, name, segmentation in json.loads(mask.objects):
        where = f"{mask.path} annotation {annotation_id} (image {mask.image_id})"
        if name not in classes.names:
            raise LabelError(f"{where} has category {name}, which is not a class{_known(name, classes)}")
        shapes = checked_shapes(segmentation, size, where=where)
        if shapes:
            outline_px += sum(_outline_px(shape) for shape in shapes if isinstance(shape, list))
            if outline_px > MAX_OUTLINE_PX:
                raise DataError(
                    f"{where}: the outlines in its image are longer than {MAX_OUTLINE_PX} pixels; the image has "
                    f"{mask.width}x{mask.height}: do the coordinates belong to another image?"
                )
            run_lengths = coco_mask.merge(coco_mask.frPyObjects(shapes, *size))
            painted.append(
                (-int(coco_mask.area(run_lengths)), annotation_id, classes.names.index(name), run_lengths)
            )
    # Paint, largest first
    nothing = classes.ignore_index if classes.background is None else classes.background
    labels = np.full(size, nothing, dtype=np.uint8)
    for _, _, index, run_lengths in sorted(painted, key=lambda item: item[:2]):
        labels[coco_mask.decode(run_lengths).astype(bool)] = index
    return labels


def refuse_other_size(mask: CocoMask, size: tuple[int, int]) -> None:
    """Raise `MaskSizeError` unless annotations have the `size` (height, width) of their image, or it rotated."""
    if sorted((mask.height, mask.width)) != sorted(size):
        raise MaskSizeError(
            f"{mask} is {shown(mask.width)}x{shown(mask.height)}, but its image is {size[1]}x{size[0]}"
        )


def checked_shapes(segmentation: Any, size: tuple[int, int], *, where: str) -> list[Any]:
    """Return checked segmentations for pycocotools, which checks nothing: polygons, or one uncompressed RLE."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            got = shown(segmentation.get("size"))
            raise DataError(f"{where}: its RLE has size {got}, but the image {list(size)}")
        counts = segmentation.get("counts")
        counts = _decompress(counts, where=where) if isinstance(counts, str) else counts
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            raise DataError(f"{where}: the counts of its RLE are damaged")
        if sum(counts) != size[0] * size[1]:
            raise DataError(
                f"{where}: its RLE counts {shown(sum(counts))} pixels, but the image has {size[0] * size[1]}"
            )
        return [{"size": list(size), "counts": counts}]
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"{where} has no segmentation: a box alone gives no mask")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(_is_coordinate, polygon)):
            raise DataError(f"{where}: a polygon is not a list of x, y, x, y, ...")
    return [polygon for polygon in segmentation if len(polygon) >= 6]  # two points have no area


def _decompress(text: str, *, where: str) -> list[int]:
    """Return run lengths from COCO's compression: 5 bits a character; from the third run on, the difference to the
    run before the last. pycocotools would write past its buffer if the string is damaged.
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
        raise DataError(f"{where}: its compressed RLE is damaged: truncated")
    return counts


def _is_coordinate(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_COORDINATE  # false for NaN


def _outline_px(polygon: list[float]) -> float:
    """Return the length of a polygon's outline in pixels, at least one a point, as counted by pycocotools."""
    points = np.array(polygon).reshape(-1, 2)
    steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
    return float(np.maximum(steps, 1).sum())


def _known(name: str, classes: ClassSet) -> str:
    return did_you_mean(name, classes.names) if len(classes) <= 20 else " (--classes names them)"


def _list_of(value: dict[str, Any], key: str, path: Path) -> list[Any]:
    if not isinstance(value.get(key), list):
        raise DataError(f'{path}: not a COCO annotation file: expected a list "{key}"')
    found: list[Any] = value[key]
    return found


def _read_image(item: Any, *, where: str) -> CocoImage:
    where = _named(item, where)
    for side in ("height", "width"):
        if type(item.get(side)) is float and item[side].is_integer():
            item[side] = int(item[side])
    _check_types(item, {"id": (int, str), "file_name": (str,), "height": (int,), "width": (int,)}, where=where)
    item["file_name"] = item["file_name"].replace("\\", "/")  # of Windows
    if min(item["height"], item["width"]) < 1:
        raise DataError(f"{where} is {shown(item['width'])}x{shown(item['height'])}")
    parts = Path(item["file_name"]).parts
    if not parts or ".." in parts or Path(item["file_name"]).is_absolute():
        raise DataError(
            f"{where}: file_name {shown(item['file_name'])} is not a path inside the image folder; "
            "gmtool data import finds images by their names"
        )
    return CocoImage(item["id"], item["file_name"], item["height"], item["width"])


def _check_annotation(item: Any, images: set[ImageId], categories: dict[int, str], *, where: str) -> None:
    where = _named(item, where)
    _check_types(item, {"id": (int,), "image_id": (int, str), "category_id": (int,)}, where=where)
    if item["image_id"] not in images:
        raise DataError(f"{where} has image {shown(item['image_id'])}, which the file does not list")
    if item["category_id"] not in categories:
        raise DataError(f"{where} has category {shown(item['category_id'])}, which the file does not list")


def _named(item: Any, where: str) -> str:
    if not isinstance(item, dict):
        raise DataError(f"{where} {shown(item)}: expected an object")
    name = item.get("id")
    return f"{where} {name if isinstance(name, str) and len(name) < 60 else shown(name)}"


def _check_types(item: dict[str, Any], expected: dict[str, tuple[type, ...]], *, where: str) -> None:
    for key, kinds in expected.items():
        if type(item.get(key)) not in kinds:  # true is not a number
            name = "text" if kinds == (str,) else "a whole number"
            raise DataError(f"{where}: {key} is {shown(item.get(key))}; expected {name}")
