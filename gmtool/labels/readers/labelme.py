"""Read labelme's JSON files: polygons, rectangles, circles and masks, with the image beside or inside them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.class_lists import BACKGROUND_NAMES, read_class_list
from gmtool.errors import DataError
from gmtool.json_toml import read_json, shown
from gmtool.labels.image_finder import ImageFinder, part_of, plain_name
from gmtool.labels.reading import damaged, no_area, points_of, size_of, unclosed
from gmtool.labels.shapes import Bitmap, Geometry, LabeledImage, Polygon, Problem, Shape, ShapeList, Source
from gmtool.labels.shapes import ellipse as make_ellipse
from gmtool.labels.shapes import rectangle as make_rectangle

LINES = ("line", "linestrip", "point", "points")
KEPT_BYTES = 1 << 29
"""JSON text, in bytes, whose shapes stay in memory between the two passes; further files are read twice."""


def read_labelme(files: Sequence[Path], root: Path, finder: ImageFinder) -> Source:
    """Return the images of labelme files; images below `root` without a file are unlabeled."""
    images, labels, problems = [], set(), []
    kept = 0
    for path in files:
        try:
            value = _read(path)
        except DataError as error:
            problems.append(Problem("unreadable files", str(path), str(error)))
            continue
        labels |= {shape["label"] for shape in value["shapes"] if _has_label(shape)}
        name = plain_name(value["imagePath"])
        image: Path | bytes | None = finder.find(name, near=path.parent)
        if image is None and isinstance(value.get("imageData"), str):
            image = _decode(value["imageData"])
        # An embedded image is named after its JSON file: imagePath may lead anywhere
        inside = path.relative_to(root).with_name(name.rpartition("/")[2]).as_posix()
        name = finder.relative(image) if isinstance(image, Path) else inside
        part = part_of("/".join(Path(name).parts[:-1]))
        kept += path.stat().st_size
        shapes = partial(_same, _shapes_in(path, value)) if kept <= KEPT_BYTES else partial(_shapes_of, path)
        images.append(LabeledImage(name, image, shapes, part, str(path)))
    known = {each.image for each in images if isinstance(each.image, Path)}
    for path in finder.all():
        if path not in known:
            name = finder.relative(path)
            images.append(LabeledImage(name, path, None, part_of("/".join(Path(name).parts[:-1]))))
    return Source(
        tool="labelme",
        found=f"labelme: {len(files)} JSON files",
        images=tuple(images),
        class_names=_listed(root, labels) or tuple(sorted(labels)),
        problems=tuple(problems),
    )


def is_labelme(value: Any) -> bool:
    """Return whether a JSON value is a labelme file."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def _read(path: Path) -> dict[str, Any]:
    value = read_json(path, what="a labelme file", any_number=True)
    if not is_labelme(value) or not isinstance(value["imagePath"], str):
        raise DataError(f'{path}: not a labelme file: expected an object with "shapes" and "imagePath"')
    found: dict[str, Any] = value
    return found


def _has_label(shape: Any) -> bool:
    return isinstance(shape, dict) and isinstance(shape.get("label"), str)


def _same(found: ShapeList, _: tuple[int, int]) -> ShapeList:
    return found


def _shapes_of(path: Path, _: tuple[int, int]) -> ShapeList:
    return _shapes_in(path, _read(path))


def _shapes_in(path: Path, value: dict[str, Any]) -> ShapeList:
    shapes, problems = [], []
    for place, item in enumerate(value["shapes"]):
        where = f"{path} shape {place}"
        if not _has_label(item):
            problems.append(damaged(where, "no label"))
            continue
        geometry = _geometry_of(item, where=f"{where} ({shown(item['label'])})")
        if isinstance(geometry, Problem):
            problems.append(geometry)
        else:
            shapes.append(Shape(item["label"], geometry))
    own_size = size_of(value.get("imageHeight"), value.get("imageWidth"))
    return ShapeList(tuple(shapes), own_size, tuple(problems))


def _geometry_of(item: dict[str, Any], *, where: str) -> Geometry | Problem:  # noqa: PLR0911  one kind a line
    kind = item.get("shape_type") or "polygon"
    points = points_of(item.get("points"))
    if points is None:
        return unclosed(where, 0) if item.get("points") == [] else damaged(where, "points are not [[x, y], ...]")
    if kind in LINES:
        return no_area(where, kind)
    if kind in ("polygon", "oriented_rectangle"):
        return Polygon((points,)) if len(points) >= 3 else unclosed(where, len(points))
    if len(points) != 2:
        return damaged(where, f"{kind} of {len(points)} points; expected 2")
    (x0, y0), (x1, y1) = points.tolist()
    if kind == "rectangle":
        return make_rectangle(x0, y0, x1, y1)
    if kind == "circle":
        radius = float(np.hypot(x1 - x0, y1 - y0))
        return make_ellipse(x0, y0, radius, radius)
    if kind == "mask":
        content = _decode(item.get("mask"))
        if content is None:
            return damaged(where, "mask is not a PNG in base64")
        return Bitmap(content, left=int(min(x0, x1)), top=int(min(y0, y1)))
    return damaged(where, f"unknown shape_type {shown(kind)}")


def _decode(text: Any) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) and text else None
    except (binascii.Error, ValueError):
        return None


def _listed(root: Path, labels: set[str]) -> tuple[str, ...]:
    """Return the names of `labels.txt` (`labelme --labels`) or `class_names.txt` beside the data, if they fit."""
    for name in ("labels.txt", "class_names.txt"):
        path = root / name
        if path.is_file():
            names = read_class_list(path).names
            if labels <= set(names):
                return tuple(name for name in names if name in labels or name not in BACKGROUND_NAMES)
    return ()
