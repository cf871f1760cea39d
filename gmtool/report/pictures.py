"""Pictures of a report as data URIs: image, ground truth, prediction, mistakes."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from gmtool.classes import ClassSet
from gmtool.images import UInt8Array
from gmtool.masks.files import color_table
from gmtool.report.metrics import Float64Array

MAX_SIDE_PX = 380
"""Longest side of a picture in pixels; nine rows of them stay below a megabyte."""
OVERLAY = 0.62
"""Opacity of class colours over a picture."""
WRONG = (214, 40, 90)
"""Colour of mistakes, which differs from the grey picture in brightness too."""
IGNORED = (128, 128, 128)
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Example:
    """Example image of a report."""

    id: str
    kind: str
    """Reason: "worst", "median", or "labeled" for a training image."""
    miou: float
    """mIoU of the image, in [0, 1]; NaN of a training image."""
    picture: UInt8Array | None
    """RGB, (H, W, 3); None if masks were scored without images."""
    truth: UInt8Array
    """Label map (H, W)."""
    prediction: UInt8Array
    """Label map (H, W)."""


@dataclass(frozen=True)
class Panel:
    """Titled picture of an example."""

    title: str
    uri: str
    width: int
    height: int


def panels(example: Example, classes: ClassSet) -> list[Panel]:
    """Return image (if known), ground truth, prediction and mistakes, scaled to the largest side."""
    step = max(example.truth.shape) / MAX_SIDE_PX
    height, width = (max(1, round(length / max(step, 1))) for length in example.truth.shape)
    truth, prediction = (_shrink(labels, height, width) for labels in (example.truth, example.prediction))
    prediction = np.where(truth == classes.ignore_index, truth, prediction)
    wrong = (truth != prediction) & (truth != classes.ignore_index)
    if example.picture is None:
        base = np.full((height, width, 3), 236, dtype=np.uint8)
        shown = {"ground truth": _colors(truth, classes), "prediction": _colors(prediction, classes)}
    else:
        picture = Image.fromarray(example.picture).resize((width, height), Image.Resampling.BILINEAR)
        base = np.asarray(picture)
        shown = {"image": base} | {
            title: _blend(base, _colors(labels, classes), _is_shown(labels, classes))
            for title, labels in (("ground truth", truth), ("prediction", prediction))
        }
    grey = np.asarray(Image.fromarray(base).convert("L").convert("RGB"))
    paled = (grey * 0.5 + 120).astype(np.uint8)
    shown["mistakes"] = np.where(wrong[..., None], np.array(WRONG, dtype=np.uint8), paled)
    return [Panel(title, _jpeg(pixels), width, height) for title, pixels in shown.items()]


def image_and_mask(picture: UInt8Array, mask: UInt8Array, classes: ClassSet) -> list[Panel]:
    """Return an image, (H, W, 3) uint8, and the image under its mask, (H, W), scaled to the largest side."""
    step = max(mask.shape) / MAX_SIDE_PX
    height, width = (max(1, round(length / max(step, 1))) for length in mask.shape)
    base = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    labels = _shrink(mask, height, width)
    mixed = _blend(base, _colors(labels, classes), _is_shown(labels, classes))
    shown = {"image": base, "prediction": mixed}
    return [Panel(title, _jpeg(pixels), width, height) for title, pixels in shown.items()]


def heat_map(shares: Float64Array) -> str:
    """Return a matrix of shares in [0, 1] (NaN: empty) as a picture with one pixel a cell."""
    known = np.nan_to_num(shares)
    low, high = np.array([243, 246, 249]), np.array([16, 72, 110])
    # The square root makes small shares visible
    pixels = (low + (high - low) * np.sqrt(known)[..., None]).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return _uri("png", buffer.getvalue())


def picture_uri(png: bytes) -> str:
    """Return a PNG as a JPEG data URI, which is a tenth of its size for photos."""
    return _jpeg(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))


def _shrink(labels: UInt8Array, height: int, width: int) -> UInt8Array:
    """Return the label map at another size, by nearest neighbour."""
    return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def _colors(labels: UInt8Array, classes: ClassSet) -> UInt8Array:
    colors: UInt8Array = color_table(classes, other=IGNORED, ignored=IGNORED)[labels]
    return colors


def _is_shown(labels: UInt8Array, classes: ClassSet) -> npt.NDArray[np.bool_]:
    """Return the tinted pixels, (H, W) bool: neither ignored nor background."""
    shown: npt.NDArray[np.bool_] = labels != classes.ignore_index
    return shown if classes.background is None else shown & (labels != classes.background)


def _blend(base: UInt8Array, colors: UInt8Array, where: npt.NDArray[np.bool_]) -> UInt8Array:
    mixed = ((1 - OVERLAY) * base + OVERLAY * colors).astype(np.uint8)
    blended: UInt8Array = np.where(where[..., None], mixed, base)
    return blended


def _jpeg(pixels: UInt8Array) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return _uri("jpeg", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
