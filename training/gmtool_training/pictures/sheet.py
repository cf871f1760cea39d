"""Sheet of images and masks: rows of tiles in titled columns, with a legend of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from gmtool.classes import ClassSet
from gmtool.images import UInt8Array
from gmtool.masks.files import color_table

TILE_PX = 240
"""Width of a tile in pixels."""
GAP_PX = 8
FONT_PX = 15
LINE_PX = 22
INK, PALE_INK, FRAME = "#222222", "#666666", "#aaaaaa"
PALEST = 0.15
"""Opacity of pixels with certainty 0."""


@dataclass(frozen=True)
class MaskTile:
    """Label map (H, W) uint8, and the certainty of each pixel (H, W) in [0, 1]."""

    labels: UInt8Array
    certainty: npt.NDArray[np.float32] | None = None

    def paint(self, colors: UInt8Array) -> UInt8Array:
        """Return the mask in colours (256, 3), paler where less certain: (H, W, 3) uint8."""
        painted: UInt8Array = colors[self.labels]
        if self.certainty is None:
            return painted
        strength = (PALEST + (1 - PALEST) * self.certainty)[..., None]
        faded: UInt8Array = np.rint(255 + (painted - 255.0) * strength).astype(np.uint8)
        return faded


Tile = UInt8Array | MaskTile
"""Image (H, W, 3) uint8, or a mask."""


def draw_sheet(
    titles: Sequence[str], rows: Sequence[Sequence[Tile]], *, classes: ClassSet, note: str
) -> Image.Image:
    """Return the sheet: titles, rows of tiles, legend (most frequent class first), and a note.

    Args:
        titles: Titles of the columns.
        rows: Rows of tiles of equal size, one tile a title.
        classes: Palette and names.
        note: One line at the bottom.
    """
    # Sizes
    colors = color_table(classes)
    height, width = _to_size(rows[0][0])
    legend = _legend_lines(rows, classes, room=len(titles) * (width + GAP_PX) - GAP_PX)
    top = GAP_PX + LINE_PX
    below = top + len(rows) * (height + GAP_PX)
    size = (GAP_PX + len(titles) * (width + GAP_PX), below + (len(legend) + 1) * LINE_PX + GAP_PX)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    # Titles and tiles
    for column, title in enumerate(titles):
        left = GAP_PX + column * (width + GAP_PX)
        draw.text((left + width / 2, GAP_PX + LINE_PX / 2), title, fill=INK, font=_font(), anchor="mm")
        for row, tiles in enumerate(rows):
            tile = tiles[column]
            pixels = tile.paint(colors) if isinstance(tile, MaskTile) else tile
            resample = Image.Resampling.NEAREST if isinstance(tile, MaskTile) else Image.Resampling.BICUBIC
            picture = Image.fromarray(pixels).resize((width, height), resample)
            above = top + row * (height + GAP_PX)
            canvas.paste(picture, (left, above))
            draw.rectangle((left - 1, above - 1, left + width, above + height), outline=FRAME)
    # Legend and note
    for number, line in enumerate(legend):
        y = below + number * LINE_PX
        for left, label, name in line:
            box = (left, y + 4, left + LINE_PX - 8, y + LINE_PX - 4)
            draw.rectangle(box, fill=tuple(int(v) for v in colors[label]), outline=FRAME)
            draw.text((left + LINE_PX, y + LINE_PX / 2), name, fill=INK, font=_font(), anchor="lm")
    middle = below + len(legend) * LINE_PX + LINE_PX / 2
    draw.text((GAP_PX, middle), note, fill=PALE_INK, font=_font(), anchor="lm")
    return canvas


def _legend_lines(
    rows: Sequence[Sequence[Tile]], classes: ClassSet, *, room: int
) -> list[list[tuple[int, int, str]]]:
    """Return lines of (left edge, label, name) of the classes, most frequent first, each within `room` pixels."""
    masks = [tile for tiles in rows for tile in tiles if isinstance(tile, MaskTile)]
    pixels = sum((np.bincount(mask.labels.ravel(), minlength=256) for mask in masks), np.zeros(256, np.int64))
    lines: list[list[tuple[int, int, str]]] = [[]]
    left = GAP_PX
    for label in sorted(np.flatnonzero(pixels).tolist(), key=lambda label: -pixels[label]):
        name = classes.names[label] if label < len(classes) else "ignored"
        length = round(LINE_PX + _font().getlength(name) + 2 * GAP_PX)
        if lines[-1] and left + length > room:
            lines.append([])
            left = GAP_PX
        lines[-1].append((left, label, name))
        left += length
    return lines


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return a font with Greek letters, which Pillow's default lacks."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), FONT_PX)


def _to_size(tile: Tile) -> tuple[int, int]:
    height, width = (tile.labels if isinstance(tile, MaskTile) else tile).shape[:2]
    return round(TILE_PX * height / width), TILE_PX
