"""Read Datumaro's JSON: polygons, masks, boxes and ellipses of one subset a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.errors import DataError
from gmtool.json_toml import read_json, shown
from gmtool.labels.image_finder import ImageFinder, part_of, plain_name
from gmtool.labels.reading import damaged, no_area, points_of, size_of, unclosed
from gmtool.labels.shapes import Geometry, LabeledImage, Polygon, Problem, RunLengths, Shape, ShapeList, Source
from gmtool.labels.shapes import ellipse as make_ellipse
from gmtool.labels.shapes import rectangle as make_rectangle
from gmtool.masks.coco_annotations import checked_shapes

NO_SHAPES = ("label", "caption")
LINES = ("polyline", "points", "cuboid_3d", "cuboid_2d")


def read_datumaro(files: Sequence[Path], root: Path, finder: ImageFinder) -> Source:
    """Return the images of Datumaro's files; each is a subset of its name.

    Raises:
        DataError: Not Datumaro's JSON.
    """
    images: list[LabeledImage] = []
    names: list[str] = []
    for path in files:
        value = read_json(path, what="Datumaro's JSON", any_number=True)
        if not is_datumaro(value):
            raise DataError(f"{path}: not Datumaro's JSON: expected an object with categories and items")
        label_part = value["categories"].get("label")
        listed = label_part.get("labels") if isinstance(label_part, dict) else None
        own = [
            item["name"] if isinstance(item, dict) and isinstance(item.get("name"), str) else f"label_{place}"
            for place, item in enumerate(listed if isinstance(listed, list) else [])
        ]
        names += [name for name in own if name not in names]
        for item in value["items"]:
            if isinstance(item, dict) and isinstance(item.get("id"), str):
                images.append(_image_of(item, own, path, finder))
    return Source(
        tool="datumaro",
        found=f"Datumaro: {len(files)} JSON file{'s' if len(files) > 1 else ''}, {len(images)} images",
        images=tuple(images),
        class_names=tuple(names),
    )


def is_datumaro(value: Any) -> bool:
    """Return whether a JSON value is a file of Datumaro."""
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("categories"), dict) and isinstance(value.get("items"), list)


def _image_of(item: dict[str, Any], names: list[str], path: Path, finder: ImageFinder) -> LabeledImage:
    media = item.get("image") if isinstance(item.get("image"), dict) else item.get("media")
    media = media if isinstance(media, dict) else {}
    listed = media.get("path") if isinstance(media.get("path"), str) else ""
    folder = path.parent.parent / "images" / path.stem
    image = (finder.find(listed, near=folder) if listed else None) or finder.find_stem(item["id"], near=folder)
    name = finder.relative(image) if image else plain_name(listed or item["id"])
    size = media.get("size")
    own_size = size_of(*size) if isinstance(size, list) and len(size) == 2 else None
    listed_shapes = item.get("annotations")
    annotations: list[Any] = listed_shapes if isinstance(listed_shapes, list) else []
    where = f"{path} item {item['id']}"
    labels = partial(_shapes_of, annotations, names, where, own_size)
    return LabeledImage(name, image, labels, part_of(path.stem), where)


def _shapes_of(
    annotations: list[Any], names: list[str], where: str, own_size: tuple[int, int] | None, size: tuple[int, int]
) -> ShapeList:
    shapes, problems = [], []
    for place, item in enumerate(annotations):
        spot = f"{where} annotation {place}"
        if not isinstance(item, dict) or item.get("type") in NO_SHAPES:
            continue
        label, order = item.get("label_id"), item.get("z_order", 0)
        if type(label) is not int or not 0 <= label < len(names):
            problems.append(damaged(spot, f"label_id {shown(label)}, but {len(names)} are named"))
            continue
        geometry = _geometry_of(item, own_size or size, where=spot)
        if isinstance(geometry, Problem):
            problems.append(geometry)
        else:
            shapes.append(Shape(names[label], geometry, order if type(order) is int else 0))
    return ShapeList(tuple(shapes), own_size, tuple(problems))


def _geometry_of(item: dict[str, Any], size: tuple[int, int], *, where: str) -> Geometry | Problem:  # noqa: PLR0911
    kind = item.get("type")
    if kind in LINES:
        return no_area(where, str(kind))
    if kind == "mask":
        try:
            (runs,) = checked_shapes(item.get("rle") or {}, size, where=where)
        except DataError as error:
            return Problem("damaged shapes", where, f"{error}: left out")
        return RunLengths(
            np.array(runs["counts"], dtype=np.int64), runs["size"][0], runs["size"][1], by_column=True
        )
    points = points_of(item.get("bbox" if kind == "bbox" else "points"))
    if points is None:
        return damaged(where, "no points")
    if kind == "polygon":
        return Polygon((points,)) if len(points) >= 3 else unclosed(where, len(points))
    if len(points) != 2:
        return damaged(where, f"{shown(kind)} of {len(points)} points; expected 2")
    (x, y), (a, b) = points.tolist()
    if kind == "bbox":
        return make_rectangle(x, y, x + a, y + b)
    if kind == "ellipse":  # its bounding rectangle
        return make_ellipse((x + a) / 2, (y + b) / 2, (a - x) / 2, (b - y) / 2)
    return damaged(where, f"unknown type {shown(kind)}")
