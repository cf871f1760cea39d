"""Read CVAT's XML, "CVAT for images" and "CVAT for video": polygons, masks, boxes, ellipses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from gmtool.classes import Color
from gmtool.errors import DataError
from gmtool.json_toml import shown
from gmtool.labels.image_finder import ImageFinder, part_of, plain_name
from gmtool.labels.reading import damaged, no_area, size_of, unclosed
from gmtool.labels.shapes import (
    Geometry,
    LabeledImage,
    Polygon,
    Problem,
    RunLengths,
    Shape,
    ShapeList,
    Source,
    rotate,
)
from gmtool.labels.shapes import ellipse as make_ellipse

SHAPES = ("polygon", "box", "mask", "ellipse", "polyline", "points", "cuboid", "skeleton")
MAX_XML_DEPTH = 32
CHUNK = 1 << 20


@dataclass
class _Frame:
    """Image element, or frame of a video."""

    name: str
    size: tuple[int, int] | None
    part: str = ""
    shapes: list[Shape] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class _Document:
    """Handler of a CVAT document. Streaming: a project's XML may have gigabytes.

    Python's expat, with document types and entities refused: they are how XML opens files and grows without
    bound, and CVAT writes neither.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels: dict[str, Color | None] = {}
        self.frames: list[_Frame] = []
        self._by_frame: dict[int, _Frame] = {}
        self._size: list[int] = [0, 0]
        self._stack: list[str] = []
        self._text = ""
        self._label = ""
        self._track: str | None = None

    def read(self) -> None:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        try:
            with self.path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    parser.Parse(chunk, False)
                parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise DataError(f"{self.path}: not XML: {error}") from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _refuse(self, *_: Any) -> None:
        raise DataError(f"{self.path}: has a document type or entities, which CVAT does not write: remove them")

    def _characters(self, text: str) -> None:
        if len(self._text) < 1000:
            self._text += text

    def _start(self, tag: str, given: Mapping[str, str]) -> None:
        self._stack.append(tag)
        self._text = ""
        if len(self._stack) > MAX_XML_DEPTH:
            raise DataError(f"{self.path}: elements nested deeper than {MAX_XML_DEPTH} levels")
        if len(self._stack) == 1 and tag != "annotations":
            raise DataError(f"{self.path}: not CVAT's XML: expected <annotations>, got <{tag}>")
        if tag == "image":
            size = size_of(_number(given.get("height")), _number(given.get("width")))
            self.frames.append(_Frame(given.get("name", ""), size, given.get("subset", "")))
        elif tag == "track":
            self._track = given.get("label", "")
        elif tag in SHAPES and "skeleton" not in self._stack[:-1]:
            self._add(tag, given)

    def _end(self, tag: str) -> None:
        self._stack.pop()
        above, text = self._stack[-1:], self._text.strip()
        if tag == "name" and above == ["label"]:
            self._label = text
            self.labels.setdefault(text, None)
        elif tag == "color" and above == ["label"]:
            self.labels[self._label] = _color(text)
        elif above == ["original_size"] and tag in ("width", "height"):
            self._size[tag == "width"] = int(_number(text) or 0)
        elif tag == "track":
            self._track = None
        self._text = ""

    def _add(self, tag: str, given: Mapping[str, str]) -> None:
        """Add a shape to its image, or to its frame of a video."""
        label = given.get("label", "") if self._track is None else self._track
        if self._track is None:
            if not self.frames:
                raise DataError(f"{self.path}: <{tag}> outside of an image")
            frame = self.frames[-1]
        else:
            if given.get("outside") == "1":
                return
            number = int(_number(given.get("frame")) or 0)
            if number not in self._by_frame:
                self._by_frame[number] = _Frame(f"frame_{number:06d}", size_of(*self._size))
                self.frames.append(self._by_frame[number])
            frame = self._by_frame[number]
        self.labels.setdefault(label, None)
        where = f"{self.path} image {frame.name} {tag} {len(frame.shapes) + len(frame.problems)} ({shown(label)})"
        geometry = _geometry_of(tag, given, where=where)
        if isinstance(geometry, Problem):
            frame.problems.append(geometry)
        else:
            frame.shapes.append(Shape(label, geometry, int(_number(given.get("z_order")) or 0)))


def read_cvat(files: Sequence[Path], root: Path, finder: ImageFinder) -> Source:
    """Return the images of CVAT's XML files.

    Raises:
        DataError: Not CVAT's XML.
    """
    images: list[LabeledImage] = []
    labels: dict[str, Color | None] = {}
    for path in files:
        document = _Document(path)
        document.read()
        labels |= {name: color for name, color in document.labels.items() if name not in labels}
        for frame in document.frames:
            image = finder.find(frame.name, near=path.parent) or finder.find_stem(frame.name, near=path.parent)
            name = finder.relative(image) if image else plain_name(frame.name)
            found = ShapeList(tuple(frame.shapes), frame.size, tuple(frame.problems))
            part = part_of(frame.part) or part_of(path.stem) or part_of("/".join(name.split("/")[:-1]))
            images.append(LabeledImage(name, image, partial(_same, found), part, f"{path} image {frame.name}"))
    return Source(
        tool="cvat",
        found=f"CVAT: {len(files)} XML file{'s' if len(files) > 1 else ''}, {len(images)} images",
        images=tuple(images),
        class_names=tuple(labels),
        colors={name: color for name, color in labels.items() if color is not None},
    )


def _same(found: ShapeList, _: tuple[int, int]) -> ShapeList:
    return found


def _geometry_of(tag: str, given: Mapping[str, str], *, where: str) -> Geometry | Problem:  # noqa: PLR0911
    if tag in ("polyline", "points", "cuboid", "skeleton"):
        return no_area(where, tag)
    if tag == "mask":
        return _mask_of(given, where=where)
    turn = _number(given.get("rotation")) or 0.0
    if tag == "polygon":
        try:
            pairs = [tuple(map(float, pair.split(","))) for pair in given.get("points", "").split(";") if pair]
            points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        except ValueError:
            return damaged(where, "points are not x,y;x,y;...")
        return Polygon((points,)) if len(points) >= 3 else unclosed(where, len(points))
    names = ("xtl", "ytl", "xbr", "ybr") if tag == "box" else ("cx", "cy", "rx", "ry")
    values = [_number(given.get(name)) for name in names]
    if None in values:
        return damaged(where, f"{', '.join(names)} are not numbers")
    a, b, c, d = (float(value or 0) for value in values)
    if tag == "ellipse":
        return make_ellipse(a, b, c, d, turn)
    centre = np.array([(a + c) / 2, (b + d) / 2])
    corners = np.array([(a, b), (c, b), (c, d), (a, d)])
    return Polygon((rotate(corners - centre, turn) + centre,))


def _mask_of(given: Mapping[str, str], *, where: str) -> Geometry | Problem:
    """Return a mask: run lengths of the rectangle at (left, top), row after row, first those outside."""
    numbers = [_number(given.get(name)) for name in ("height", "width", "left", "top")]
    try:
        counts = np.array([int(each) for each in given.get("rle", "").split(",")], dtype=np.int64)
    except (ValueError, OverflowError):
        return damaged(where, "rle is not a list of numbers")
    if None in numbers:
        return damaged(where, "left, top, width or height is not a number")
    height, width, left, top = (int(number or 0) for number in numbers)
    if int(counts.min()) < 0 or sum(counts.tolist()) > max(height, 0) * max(width, 0):
        return damaged(where, f"rle does not fit into {width}x{height}")
    return RunLengths(counts, height, width, left=left, top=top)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < 1e12 else None


def _color(text: str) -> Color | None:
    digits = text.removeprefix("#")
    try:
        return (int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)) if len(digits) == 6 else None
    except ValueError:
        return None
