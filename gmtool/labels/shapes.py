"""Labeled shapes and images of any labeling tool, before they become label maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from gmtool.classes import Color

ToolName = Literal[
    "labelme",
    "cvat",
    "cvat-masks",
    "label-studio",
    "coco",
    "yolo",
    "datumaro",
    "supervisely",
    "roboflow-masks",
    "voc",
    "masks",
]
PartName = Literal["train", "val", "test"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Polygon:
    """Closed outlines; a pixel is inside if its centre is within an odd number of them."""

    rings: tuple[FloatArray, ...]
    """(N, 2) each: x and y in pixels from the upper left corner of the image, so that pixel (0, 0) has its centre
    at (0.5, 0.5)."""


@dataclass(frozen=True)
class RunLengths:
    """Mask as alternating lengths of pixels outside and inside, beginning outside."""

    counts: npt.NDArray[np.int64]
    height: int
    width: int
    by_column: bool = False
    """Column after column, as COCO; else row after row."""
    left: int = 0
    top: int = 0


@dataclass(frozen=True)
class Bitmap:
    """Mask as an image file, decoded when it is painted; pixels other than 0 are inside."""

    content: bytes
    left: int = 0
    top: int = 0


Geometry = Polygon | RunLengths | Bitmap


@dataclass(frozen=True)
class Shape:
    """Labeled region of an image."""

    label: str
    geometry: Geometry
    z_order: int = 0
    """Shapes of larger order cover those of smaller; shapes of equal order: the later one."""


@dataclass(frozen=True)
class Problem:
    """Part of a source that was left out, or is doubtful."""

    kind: str
    """Short name under which problems are counted, such as "empty shapes"."""
    where: str
    """File, image or shape."""
    message: str


@dataclass(frozen=True)
class ShapeList:
    """Shapes of one image."""

    shapes: tuple[Shape, ...]
    size: tuple[int, int] | None = None
    """(height, width) of the image as the tool saw it; None if the file does not say."""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class MaskFile:
    """Label map as an image file."""

    path: Path
    labels: Mapping[int, str]
    """Label by value of a pixel, or by its colour as `pack_color` gives it; other values are unknown."""
    is_color: bool = False


Labels = Callable[[tuple[int, int]], ShapeList]
"""Returns the shapes of an image of a size (height, width) in pixels, which relative coordinates need."""


@dataclass(frozen=True)
class LabeledImage:
    """Image of a source with its labels."""

    name: str
    """Path of the image in the tool, with forward slashes and suffix."""
    image: Path | bytes | None
    """Image file, or its content; None if it was not found."""
    labels: Labels | MaskFile | None
    """Shapes, a mask file, or None: not labeled."""
    part: PartName | None = None
    where: str = ""
    """File of its labels, for messages."""
    is_drawn: bool | None = None
    """Whether its labels have a shape; None: not known before they are read."""


@dataclass(frozen=True)
class Source:
    """Images and labels that a tool exported."""

    tool: ToolName
    found: str
    """Summary of the files, such as "labelme: 12 JSON files"."""
    images: tuple[LabeledImage, ...]
    class_names: tuple[str, ...]
    """Labels in the tool's order, or in alphabetical order; may contain `BACKGROUND_NAMES` and
    `IGNORE_NAMES`."""
    colors: Mapping[str, Color] = field(default_factory=dict)
    """Colour by label, where the tool has one."""
    on_top: Literal["later", "smaller"] = "later"
    """Rule for overlaps: the later shape covers the earlier one, or the smaller the larger."""
    has_ground: bool = False
    """Whether every pixel has a label, so that no ground is without one."""
    ambiguous: str = ""
    """Reason why the user has to say what ground without a label is."""
    problems: tuple[Problem, ...] = ()


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    """Return an axis-parallel rectangle of two opposite corners."""
    return Polygon((np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64),))


def ellipse(cx: float, cy: float, rx: float, ry: float, rotation_deg: float = 0.0) -> Polygon:
    """Return an ellipse as a polygon that deviates from it by less than a hundredth of a pixel."""
    # A chord of n equal ones deviates by r (1 - cos(pi / n)), about r pi^2 / (2 n^2)
    count = int(np.clip(np.pi * np.sqrt(50 * max(abs(rx), abs(ry), 1.0)), 12, 4096))
    turn = 2 * np.pi * np.arange(count) / count
    ring = np.stack([rx * np.cos(turn), ry * np.sin(turn)], axis=1)
    return Polygon((rotate(ring, rotation_deg) + np.array([cx, cy]),))


def rotate(points: FloatArray, degrees: float) -> FloatArray:
    """Return points (N, 2) turned about the origin, clockwise as seen in an image."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned: FloatArray = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def pack_color(color: Color) -> int:
    """Return a colour as one number, red in the lowest byte."""
    return color[0] | color[1] << 8 | color[2] << 16
