"""Read labelme's JSON files: polygons, rectangles, circles and masks, with the image beside or inside them."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.class_lists import BACKGROUND_NAMES, read_class_list
from gmtool.errors import DataError
from gmtool.json_toml import read_json, shown
from gmtool.labels.image_finder import ImageFinder, part_of, plain_name
from gmtool.labels.reading import damaged, no_area, points_of, size_of, unclosed
from gmtool.labels.shapes import (
    Bitmap,
    Geometry,
    LabeledImage,
    Labels,
    Polygon,
    Problem,
    Shape,
    ShapeList,
    Source,
)
from gmtool.labels.shapes import ellipse as make_ellipse
from gmtool.labels.shapes import rectangle as make_rectangle

LINES = ("line", "linestrip", "point", "points")
KEPT_BYTES = 1 << 29
"""JSON text, in bytes, whose shapes stay in memory between the two passes; further files are read twice."""
MANY = 200
"""Files from which a fast parser of JSON is worth its import."""


@dataclass(frozen=True)
class LabelmeFile:
    """Content of a labelme file, but for its shapes."""

    path: Path
    image_name: str = ""
    """Path of the image with forward slashes."""
    labels: tuple[str, ...] = ()
    is_drawn: bool = False
    """Whether it has a shape that can be painted."""
    error: str = ""
    """Why the file cannot be used."""


Reading = Callable[[Sequence[Path]], Iterable[tuple[LabelmeFile, Labels]]]
"""Reads files in order, with their shapes."""


def read_labelme(files: Sequence[Path], root: Path, finder: ImageFinder, reading: Reading | None = None) -> Source:
    """Return the images of labelme files; images below `root` without a file are unlabeled.

    Args:
        files: JSON files.
        root: Folder of the source.
        finder: Finds their images.
        reading: Reads the files, such as in several processes; None: `read_files`.
    """
    images: list[LabeledImage] = []
    labels: set[str] = set()
    problems: list[Problem] = []
    for file, shapes in (reading or read_files)(files):
        if file.error:
            problems.append(Problem("unreadable files", str(file.path), file.error))
            continue
        labels.update(file.labels)
        image: Path | bytes | None = finder.find(file.image_name, near=file.path.parent)
        if image is None:
            image = _embedded(file.path)
        # An embedded image is named after its JSON file: imagePath may lead anywhere
        inside = file.path.relative_to(root).with_name(file.image_name.rpartition("/")[2]).as_posix()
        name = finder.relative(image) if isinstance(image, Path) else inside
        part = part_of(name.rpartition("/")[0])
        images.append(LabeledImage(name, image, shapes, part, str(file.path), file.is_drawn))
    known = {each.image for each in images if isinstance(each.image, Path)}
    for path in finder.all():
        if path not in known:
            name = finder.relative(path)
            images.append(LabeledImage(name, path, None, part_of(name.rpartition("/")[0])))
    return Source(
        tool="labelme",
        found=f"labelme: {len(files)} JSON files",
        images=tuple(images),
        class_names=_listed(root, labels) or tuple(sorted(labels)),
        problems=tuple(problems),
    )


def read_files(files: Sequence[Path]) -> Iterator[tuple[LabelmeFile, Labels]]:
    """Yield the content of each file; shapes of up to `KEPT_BYTES` of text stay in memory."""
    kept = 0
    for path in files:
        file, shapes = read_file(path, of_many=len(files) >= MANY)
        kept += path.stat().st_size
        yield file, partial(same_shapes, shapes) if kept <= KEPT_BYTES else partial(shapes_of, path)


def read_file(path: Path, *, of_many: bool = False) -> tuple[LabelmeFile, ShapeList]:
    """Return the content of a file; its `error` if it cannot be used.

    Args:
        path: JSON file.
        of_many: Whether hundreds of files are read.
    """
    try:
        value = _read(path, of_many=of_many)
    except DataError as error:
        return LabelmeFile(path, error=str(error)), ShapeList(())
    shapes = _shapes_in(path, value)
    labels = tuple({shape["label"]: None for shape in value["shapes"] if _has_label(shape)})
    return LabelmeFile(path, plain_name(value["imagePath"]), labels, bool(shapes.shapes)), shapes


def same_shapes(shapes: ShapeList, _: tuple[int, int]) -> ShapeList:
    """Return shapes that do not depend on the size of the image."""
    return shapes


def shapes_of(path: Path, _: tuple[int, int]) -> ShapeList:
    """Return the shapes of a file.

    Raises:
        DataError: It cannot be used.
    """
    return _shapes_in(path, _read(path))


def is_labelme(value: Any) -> bool:
    """Return whether a JSON value is a labelme file."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def _read(path: Path, *, of_many: bool = False) -> dict[str, Any]:
    value = read_json(path, what="a labelme file", any_number=True, of_many=of_many)
    if not is_labelme(value) or not isinstance(value["imagePath"], str):
        raise DataError(f'{path}: not a labelme file: expected an object with "shapes" and "imagePath"')
    found: dict[str, Any] = value
    return found


def _has_label(shape: Any) -> bool:
    return isinstance(shape, dict) and isinstance(shape.get("label"), str)


def _embedded(path: Path) -> bytes | None:
    """Return the image in a file; None if it has none, or was changed since."""
    with contextlib.suppress(DataError):
        return _decode(_read(path).get("imageData"))
    return None


def _shapes_in(path: Path, value: dict[str, Any]) -> ShapeList:
    shapes, problems = [], []
    for place, item in enumerate(value["shapes"]):
        if not _has_label(item):
            problems.append(damaged(f"{path} shape {place}", "no label"))
            continue
        geometry = _geometry_of(item, where=partial(_named, path, place, item["label"]))
        if isinstance(geometry, Problem):
            problems.append(geometry)
        else:
            shapes.append(Shape(item["label"], geometry))
    own_size = size_of(value.get("imageHeight"), value.get("imageWidth"))
    return ShapeList(tuple(shapes), own_size, tuple(problems))


def _named(path: Path, place: int, label: str) -> str:
    return f"{path} shape {place} ({shown(label)})"


def _geometry_of(item: dict[str, Any], *, where: Callable[[], str]) -> Geometry | Problem:  # noqa: PLR0911  one kind a line
    kind = item.get("shape_type") or "polygon"
    points = points_of(item.get("points"))
    if points is None:
        return (
            unclosed(where(), 0) if item.get("points") == [] else damaged(where(), "points are not [[x, y], ...]")
        )
    if kind in LINES:
        return no_area(where(), kind)
    if kind in ("polygon", "oriented_rectangle"):
        return Polygon((points,)) if len(points) >= 3 else unclosed(where(), len(points))
    if len(points) != 2:
        return damaged(where(), f"{kind} of {len(points)} points; expected 2")
    (x0, y0), (x1, y1) = points.tolist()
    if kind == "rectangle":
        return make_rectangle(x0, y0, x1, y1)
    if kind == "circle":
        radius = float(np.hypot(x1 - x0, y1 - y0))
        return make_ellipse(x0, y0, radius, radius)
    if kind == "mask":
        content = _decode(item.get("mask"))
        if content is None:
            return damaged(where(), "mask is not a PNG in base64")
        return Bitmap(content, left=int(min(x0, x1)), top=int(min(y0, y1)))
    return damaged(where(), f"unknown shape_type {shown(kind)}")


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
