"""Picture of the worst validation images: image, ground truth, prediction."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from gmtool.classes import ClassSet
from gmtool.images import UInt8Array
from gmtool.masks.png import PNG_COMPRESSION
from gmtool.report.pictures import Example
from gmtool_training.pictures.sheet import MaskTile, Tile, draw_sheet

TITLES = ("image", "ground truth", "prediction")
WHITE = 255


def draw_worst(examples: Sequence[Example], classes: ClassSet) -> bytes:
    """Return a PNG with a row for each example; smaller images are padded to the largest.

    Args:
        examples: At least one, each with its picture.
        classes: Palette and names.
    """
    height, width = np.max([example.truth.shape for example in examples], axis=0).tolist()
    rows: list[tuple[Tile, ...]] = []
    for example in examples:
        assert example.picture is not None
        masks = (example.truth, np.where(example.truth == classes.ignore_index, example.truth, example.prediction))
        padded = (MaskTile(_padded(mask, height, width, fill=classes.ignore_index)) for mask in masks)
        rows.append((_padded(example.picture, height, width, fill=WHITE), *padded))
    note = "mIoU: " + ", ".join(f"{example.id} {100 * example.miou:.1f} %" for example in examples)
    buffer = io.BytesIO()
    draw_sheet(TITLES, rows, classes=classes, note=note).save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


def _padded(pixels: UInt8Array, height: int, width: int, *, fill: int) -> UInt8Array:
    """Return pixels (h, w, ...) with a margin at the right and at the bottom."""
    found = np.full((height, width, *pixels.shape[2:]), fill, dtype=np.uint8)
    found[: pixels.shape[0], : pixels.shape[1]] = pixels
    return found
