"""Label maps of imported images: read an image's labels, check them against the image, paint them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gmtool.errors import DataError
from gmtool.images import UInt8Array, displayed_size_of
from gmtool.labels.mask_files import read_labels
from gmtool.labels.paint import paint
from gmtool.labels.shapes import LabeledImage, MaskFile, Problem, Shape, ShapeList
from gmtool.masks.label_runs import LabelRuns


@dataclass(frozen=True)
class Painted:
    """Label map of an image, with what is worth a line in the report."""

    labels: UInt8Array | LabelRuns | None
    """(H, W) of class indices; None: no labels that can be used."""
    objects: Mapping[str, int] = field(default_factory=dict)
    """Shapes by label; of a mask file, 1 for each label in it."""
    size_px: int = 0
    """Pixels of the image, if it has labels."""
    covered_px: int = 0
    """Pixels with a label."""
    overlap_px: int = 0
    """Pixels in shapes of several labels."""
    problems: tuple[Problem, ...] = ()
    is_empty: bool = False
    """Whether the tool lists the image without any label."""


def paint_image(
    image: LabeledImage, index_of: Mapping[str, int], *, ground: int, smaller_on_top: bool = False
) -> Painted:
    """Return the label map of an image, of the size at which it is displayed.

    Labels of an image of another size are left out: they would lie in wrong places.

    Args:
        image: Image with labels, whose file was found.
        index_of: Class index, or the ignore index, of every label.
        ground: Value of pixels without a label.
        smaller_on_top: Rule for overlaps of shapes.
    """
    try:
        size = _size_of(image)
        if isinstance(image.labels, MaskFile):
            return _paint_mask(image, image.labels, size, index_of)
        assert image.labels is not None
        found = image.labels(size)
    except DataError as error:
        return Painted(None, problems=(Problem("unusable images or labels", image.name, str(error)),))
    if found.size is not None and found.size != size:
        return Painted(None, problems=(*found.problems, _other_size(image, found.size, size)))
    if not found.shapes:
        return Painted(None, problems=found.problems, is_empty=not found.problems)
    return _paint_shapes(image, found, size, index_of, ground, smaller_on_top=smaller_on_top)


def _size_of(image: LabeledImage) -> tuple[int, int]:
    if isinstance(image.image, Path):
        return displayed_size_of(image.image)
    raise DataError(f"{image.name}: no image file")


def _paint_mask(
    image: LabeledImage, mask: MaskFile, size: tuple[int, int], index_of: Mapping[str, int]
) -> Painted:
    ignored = index_of["__ignore__"]
    labels, unknown = read_labels(mask, index_of, ignore_index=ignored)
    if labels.shape != size:
        return Painted(None, problems=(_other_size(image, labels.shape, size),))
    counts = np.bincount(labels.ravel(), minlength=256)
    present = {name: 1 for name in dict.fromkeys(mask.labels.values()) if counts[index_of[name]]}
    problems = [
        Problem(
            "unknown values in masks",
            image.name,
            f"{mask.path}: {_named(value, is_color=mask.is_color)} has no label "
            f"({100 * count / labels.size:.2f} % of its pixels): ignored",
        )
        for value, count in unknown.items()
    ]
    covered = int(labels.size - counts[ignored])
    return Painted(labels, present, labels.size, covered, 0, tuple(problems))


def _paint_shapes(
    image: LabeledImage,
    found: ShapeList,
    size: tuple[int, int],
    index_of: Mapping[str, int],
    ground: int,
    *,
    smaller_on_top: bool,
) -> Painted:
    problems = list(found.problems)
    try:
        painting = paint(found.shapes, size, index_of, ground=ground, smaller_on_top=smaller_on_top)
    except DataError:
        # One shape is damaged: find it, and paint the others
        shapes, broken = _usable(found.shapes, size, index_of, image)
        problems += broken
        painting = paint(shapes, size, index_of, ground=ground, smaller_on_top=smaller_on_top)
    for kind, places, what in (
        ("shapes outside the image", painting.outside, "lies outside the image: left out"),
        ("shapes partly outside the image", painting.cut, "lies partly outside the image: cut"),
        ("unclosed or empty shapes", painting.empty, "covers no pixel: left out"),
    ):
        for label, count in Counter(found.shapes[place].label for place in places).items():
            shapes_text = f"a shape of {label}" if count == 1 else f"{count} shapes of {label}"
            problems.append(Problem(kind, image.name, f"{image.where}: {shapes_text} {what}"))
    return Painted(
        painting.runs if painting.objects else None,
        painting.objects,
        size[0] * size[1],
        painting.covered_px,
        painting.overlap_px,
        tuple(problems),
    )


def _usable(
    shapes: tuple[Shape, ...], size: tuple[int, int], index_of: Mapping[str, int], image: LabeledImage
) -> tuple[list[Shape], list[Problem]]:
    kept, problems = [], []
    for shape in shapes:
        try:
            paint([shape], size, index_of, ground=0)
        except DataError as error:
            line = f"{image.where} ({shape.label}): {error}: left out"
            problems.append(Problem("damaged shapes", image.name, line))
        else:
            kept.append(shape)
    return kept, problems


def _other_size(image: LabeledImage, own: tuple[int, ...], size: tuple[int, int]) -> Problem:
    line = f"{image.where}: labels of {own[1]}x{own[0]}, but the image is {size[1]}x{size[0]}"
    if own == size[::-1]:
        line += ": was it turned by its EXIF orientation?"
    return Problem("labels of another size", image.name, f"{line}: left out")


def _named(value: int, *, is_color: bool) -> str:
    return f"colour [{value & 255}, {value >> 8 & 255}, {value >> 16}]" if is_color else f"value {value}"
