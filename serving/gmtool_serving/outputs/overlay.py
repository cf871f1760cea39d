"""Overlay of an image and its mask, with a legend."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from gmtool.classes import ClassSet
from gmtool.images import UInt8Array

OPACITY = 0.5
QUALITY = 90
LEGEND_PX = 240
"""Smallest width of the legend; narrower images get a margin."""
MIN_WIDTH_PX = 120
"""Narrower images are enlarged by a whole factor."""
FONT_PX = (12, 36)
PIXELS_PER_FONT_PX = 55


def draw_overlay(pixels: UInt8Array, mask: UInt8Array, classes: ClassSet, colors: UInt8Array) -> bytes:
    """Return `overlay_image` as a JPEG."""
    buffer = io.BytesIO()
    overlay_image(pixels, mask, classes, colors).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def overlay_image(pixels: UInt8Array, mask: UInt8Array, classes: ClassSet, colors: UInt8Array) -> Image.Image:
    """Return the image blended with the colours of its classes; below it, the classes and their shares.

    Background pixels are not tinted. Images narrower than 120 pixels are enlarged by a whole factor.

    Args:
        pixels: RGB, (H, W, 3), uint8.
        mask: Class indices, (H, W).
        classes: Classes, for names and background.
        colors: Colour of each label, (256, 3) uint8.
    """
    # Blend, and enlarge small images
    image = _blend(pixels, mask, classes, colors)
    scale = min(-(-MIN_WIDTH_PX // image.width), 16)
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    # Draw the legend, the most frequent class first
    counts = np.bincount(mask.ravel(), minlength=256)
    shown = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    legend = _legend(
        [(_name(label, classes), counts[label] / mask.size, tuple(colors[label].tolist())) for label in shown],
        max(image.width, LEGEND_PX),
    )
    # Stack image and legend
    canvas = Image.new("RGB", (legend.width, image.height + legend.height), "white")
    canvas.paste(image, (0, 0))
    canvas.paste(legend, (0, image.height))
    return canvas


def paint(mask: UInt8Array, colors: UInt8Array) -> Image.Image:
    """Return the RGB image of a mask (H, W) and a colour table (256, 3); 30 times faster than indexing."""
    image = Image.fromarray(mask)
    image.putpalette(colors.tobytes())
    return image.convert("RGB")


def _blend(pixels: UInt8Array, mask: UInt8Array, classes: ClassSet, colors: UInt8Array) -> Image.Image:
    image = Image.fromarray(pixels)
    mixed = Image.blend(image, paint(mask, colors), OPACITY)
    if classes.background is not None:
        mixed.paste(image, mask=Image.fromarray(mask == classes.background))
    return mixed


def _name(label: int, classes: ClassSet) -> str:
    return classes.names[label] if label < len(classes) else "ignored"


def _legend(entries: list[tuple[str, float, tuple[int, ...]]], width: int) -> Image.Image:
    """Return a strip of colour swatches with class names and shares, in as many rows as needed."""
    from PIL import ImageDraw, ImageFont  # slow to import, and few runs draw

    size = min(max(width // PIXELS_PER_FONT_PX, FONT_PX[0]), FONT_PX[1])
    font = ImageFont.load_default(size)
    gap, row = size // 2, round(size * 1.6)
    places = []
    x, y = gap, gap
    for name, share, color in entries:
        text = f"{name} {_percent(share)}"
        room = round(size + gap + font.getlength(text))
        if x > gap and x + room + gap > width:
            x, y = gap, y + row
        places.append((x, y, text, color))
        x += room + 2 * gap
    strip = Image.new("RGB", (width, y + row), "white")
    draw = ImageDraw.Draw(strip)
    for left, top, text, color in places:
        draw.rectangle((left, top, left + size - 1, top + size - 1), fill=color, outline="#808080")
        draw.text((left + size + gap, top + size // 2), text, fill="#202020", font=font, anchor="lm")
    return strip


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"
