"""Read Supervisely's projects: meta.json, and `ann/IMAGE.json` beside `img/IMAGE` in each data set."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gmtool.errors import DataError
from gmtool.images import MAX_PIXELS
from gmtool.json_toml import read_json, shown
from gmtool.labels.image_finder import ImageFinder, part_of
from gmtool.labels.reading import damaged, no_area, points_of, size_of, unclosed
from gmtool.labels.shapes import Bitmap, Geometry, LabeledImage, Polygon, Problem, Shape, ShapeList, Source
from gmtool.labels.shapes import rectangle as make_rectangle


def read_supervisely(files: Sequence[Path], root: Path, finder: ImageFinder) -> Source:
    """Return the images of a project, whose `meta.json` is given.

    Raises:
        DataError: meta.json lists no classes.
    """
    value = read_json(files[0], what="Supervisely's meta.json", any_number=True)
    listed = value.get("classes") if isinstance(value, dict) else None
    titles = [item.get("title") for item in listed or [] if isinstance(item, dict)]
    names = [title for title in titles if isinstance(title, str)]
    if not names:
        raise DataError(f"{files[0]}: not Supervisely's meta.json: expected classes with a title")
    images = []
    for path in sorted(files[0].parent.glob("**/ann/**/*.json")):
        image = finder.find(path.stem, near=path.parent.parent / "img")
        name = finder.relative(image) if image else path.stem
        part = part_of(path.parent.parent.name)
        images.append(LabeledImage(name, image, partial(_shapes_of, path), part, str(path)))
    return Source(
        tool="supervisely",
        found=f"Supervisely: meta.json and {len(images)} annotation files",
        images=tuple(images),
        class_names=tuple(names),
    )


def _shapes_of(path: Path, _: tuple[int, int]) -> ShapeList:
    value = read_json(path, what="Supervisely's annotation", any_number=True)
    objects = value.get("objects") if isinstance(value, dict) else None
    if not isinstance(objects, list):
        raise DataError(f"{path}: not Supervisely's annotation: expected a list of objects")
    size = value.get("size") if isinstance(value.get("size"), dict) else {}
    shapes, problems = [], []
    for place, item in enumerate(objects):
        where = f"{path} object {place}"
        label = item.get("classTitle") if isinstance(item, dict) else None
        if not isinstance(label, str):
            problems.append(damaged(where, "no classTitle"))
            continue
        geometry = _geometry_of(item, where=where)
        if isinstance(geometry, Problem):
            problems.append(geometry)
        else:
            shapes.append(Shape(label, geometry))
    return ShapeList(tuple(shapes), size_of(size.get("height"), size.get("width")), tuple(problems))


def _geometry_of(item: dict[str, Any], *, where: str) -> Geometry | Problem:  # noqa: PLR0911  one kind a line
    kind = item.get("geometryType")
    if kind == "bitmap":
        return _bitmap_of(item.get("bitmap"), where=where)
    if kind not in ("polygon", "rectangle"):
        return no_area(where, shown(kind))
    points = item.get("points")
    if not isinstance(points, dict):
        return damaged(where, "no points")
    outer, inner = points_of(points.get("exterior")), points.get("interior")
    if outer is None:
        return unclosed(where, 0)
    if kind == "rectangle":
        low, high = outer.min(axis=0), outer.max(axis=0) + 1  # the corners are pixels, both inside
        return make_rectangle(*low.tolist(), *high.tolist())
    if len(outer) < 3:
        return unclosed(where, len(outer))
    holes = [points_of(ring) for ring in inner] if isinstance(inner, list) else []
    # Points are pixels, which have their centre half a pixel further
    return Polygon(tuple(ring + 0.5 for ring in (outer, *holes) if ring is not None))


def _bitmap_of(value: Any, *, where: str) -> Geometry | Problem:
    if not isinstance(value, dict) or not isinstance(value.get("data"), str):
        return damaged(where, "no data of its bitmap")
    origin = points_of(value.get("origin"))
    try:
        packed = base64.b64decode(value["data"], validate=True)
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(packed, MAX_PIXELS)
    except (binascii.Error, ValueError, zlib.error):
        return damaged(where, "data of its bitmap are no zlib in base64")
    if origin is None or len(origin) != 1 or unpacker.unconsumed_tail:
        return damaged(where, "bitmap without origin, or too large")
    return Bitmap(content, left=int(origin[0, 0]), top=int(origin[0, 1]))
