"""Read mask files of other tools: find out how labels are coded, and turn them into class indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from gmtool.errors import DataError
from gmtool.images import UInt8Array, open_image
from gmtool.labels.shapes import MaskFile
from gmtool.masks.files import JPEG_MASK

MAX_VALUES = 255
SAMPLED = 24
"""Masks that are looked at to find out the coding."""


@dataclass(frozen=True)
class Coding:
    """Coding of a set of masks."""

    is_color: bool
    values: tuple[int, ...]
    """Values found in the sampled masks, or packed colours."""


def recognize_coding(paths: Sequence[Path]) -> Coding:
    """Return whether masks hold colours or values, and which, from up to `SAMPLED` of them evenly spread.

    Three equal channels are values. Palette images are colours if one index has several colours: an image editor
    then made a palette of its own for each.

    Raises:
        DataError: A mask cannot be read, is stored as JPEG, or has more than `MAX_VALUES` colours.
    """
    chosen = paths[:: max(1, len(paths) // SAMPLED)][:SAMPLED]
    is_color = any(read_pixels(path).ndim == 3 for path in chosen) or _palettes_differ(chosen)
    values: set[int] = set()
    for path in chosen:
        pixels = read_pixels(path, as_colors=is_color)
        values |= set(np.unique(pack_pixels(pixels) if is_color else pixels).tolist())
        if len(values) > MAX_VALUES + 1:
            kind = "colours" if is_color else "values"
            raise DataError(f"{path}: more than {MAX_VALUES} {kind}: is it a mask? (it may be smoothed at edges)")
    return Coding(is_color, tuple(sorted(values)))


def _palettes_differ(paths: Sequence[Path]) -> bool:
    """Return whether an index that occurs in two masks has two colours."""
    known: dict[int, tuple[int, int, int]] = {}
    for path in paths:
        palette = palette_of(path)
        for index in np.unique(read_pixels(path)).tolist() if palette else []:
            if index in palette and known.setdefault(index, palette[index]) != palette[index]:
                return True
    return False


def read_labels(
    mask: MaskFile, index_of: Mapping[str, int], *, ignore_index: int
) -> tuple[UInt8Array, dict[int, int]]:
    """Return a label map (H, W) uint8, and the number of pixels of each value without a label; those are ignored.

    Raises:
        DataError: The mask cannot be read, or is stored as JPEG.
    """
    pixels = read_pixels(mask.path, as_colors=mask.is_color)
    packed = pack_pixels(pixels) if mask.is_color else pixels
    if not mask.is_color and packed.ndim == 3:
        raise DataError(f"{mask.path}: mask of colours, but the other masks hold values")
    known = np.array(sorted(mask.labels), dtype=np.int64)
    indices = np.array([index_of[mask.labels[int(value)]] for value in known], dtype=np.uint8)
    if not mask.is_color and packed.dtype != np.int32:  # 8 or 16 bits: a table is faster than a search
        table = np.full(int(packed.max()) + 1, ignore_index, dtype=np.uint8)
        inside = known <= packed.max()
        table[known[inside]] = indices[inside]
        unknown = np.ones(len(table), dtype=bool)
        unknown[known[inside]] = False
        labels: UInt8Array = table[packed]
        counts = np.bincount(packed.ravel(), minlength=len(table)) if unknown.any() else np.zeros(len(table))
        return labels, {int(v): int(counts[v]) for v in np.flatnonzero(unknown & (counts > 0))}
    place = np.minimum(np.searchsorted(known, packed), len(known) - 1)
    missing = known[place] != packed
    labels = np.where(missing, np.uint8(ignore_index), indices[place]).astype(np.uint8)
    values, numbers = np.unique(packed[missing], return_counts=True)
    return labels, dict(zip(values.tolist(), numbers.tolist(), strict=True))


def read_pixels(path: Path, *, as_colors: bool = False) -> npt.NDArray[np.integer]:
    """Return the values of a mask, (H, W), or its colours, (H, W, 3) uint8.

    Args:
        path: Mask; three equal channels are values.
        as_colors: Return the colours of a palette image; else its indices.

    Raises:
        DataError: It cannot be read, or is stored as JPEG.
    """
    image = open_image(path)
    if image.format in ("JPEG", "MPO"):
        raise DataError(f"{path}: {JPEG_MASK}")
    try:
        if image.mode in ("L", "1") or image.mode.startswith("I") or (image.mode == "P" and not as_colors):
            values = np.array(image)
            return values.astype(np.uint8) if values.dtype == bool else values
        pixels = np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise a dozen types for damaged files
        raise DataError(f"{path}: damaged mask: {error}") from error
    is_grey = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0] if is_grey else pixels


def palette_of(path: Path) -> dict[int, tuple[int, int, int]]:
    """Return the colour of each index of a palette image; empty without a palette."""
    image: Image.Image = open_image(path)
    flat = image.getpalette() if image.mode == "P" else None
    triples = zip(*[iter(flat or [])] * 3, strict=False)
    return {index: (red, green, blue) for index, (red, green, blue) in enumerate(triples)}


def pack_pixels(pixels: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return colours as numbers, see `pack_color`; grey values are colours of equal channels."""
    if pixels.ndim == 2:
        return pixels.astype(np.int64) * 0x10101
    packed: npt.NDArray[np.int64] = pixels.astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
    return packed
