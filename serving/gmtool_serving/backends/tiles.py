"""Tiled inference of large images: logits of overlapping tiles, blended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gmtool.artifact.shapes import parse_size
from gmtool.errors import ConfigError, UsageError
from gmtool.images import UInt8Array
from gmtool_serving.backends.base import Backend, Prediction, to_prediction

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tiling:
    """Tile size and overlap for images larger than a tile."""

    height: int
    width: int
    """Size of a tile, pixels; an image that is smaller in one direction has smaller tiles."""
    overlap: int
    """Smallest overlap of neighbouring tiles, pixels."""

    def __post_init__(self) -> None:
        """Check sizes and overlap."""
        if min(self.height, self.width) < 1 or not 0 <= self.overlap < min(self.height, self.width):
            raise UsageError(
                f"--tile {self.height}x{self.width} --overlap {self.overlap}: expected HEIGHTxWIDTH in pixels and "
                "an overlap below both"
            )

    def applies_to(self, height: int, width: int) -> bool:
        """Return whether an image of this size is cut into tiles."""
        return height > self.height or width > self.width


def parse_tiling(tile: str | tuple[int, int] | None, overlap: int | None) -> Tiling | None:
    """Return tiles of a size, "512x512" or (512, 512), that overlap by a quarter unless told; None for None.

    Raises:
        UsageError: Not a size, an overlap that is not below it, or an overlap without a size.
    """
    if tile is None:
        if overlap is not None:
            raise UsageError("--overlap needs --tile HEIGHTxWIDTH")
        return None
    size = parse_size(tile, where="--tile")
    return Tiling(*size, overlap=min(size) // 4 if overlap is None else overlap)


def require_logits(backend: Backend) -> None:
    """Check that a model has the logits that blending tiles needs.

    Raises:
        ConfigError: It has none.
    """
    if "logits" not in backend.spec.outputs:
        raise ConfigError(
            f"--tile blends logits, but {backend.model} gives {', '.join(backend.spec.outputs)} alone: export it "
            "with gmtool export --output logits"
        )


def predict_tiled(backend: Backend, image: UInt8Array, tiling: Tiling, *, batch: int = 1) -> Prediction:
    """Return mask and confidence, (1, H, W) uint8 each, of an image, computed tile by tile.

    Logits are averaged with weights that fall linearly from the middle of a tile to its edge, where context is
    missing. Rows of tiles are blended from top to bottom, and a stripe that no further row covers becomes labels
    at once: memory grows with the width of the image, not with its height.

    Args:
        backend: Model with logits.
        image: RGB, (H, W, 3) uint8.
        tiling: Tile size and overlap.
        batch: Tiles in a batch; all have the same size.

    Raises:
        BackendError: The runtime failed on a tile.
    """
    # Place the tiles
    height, width = image.shape[:2]
    tile_height, tile_width = min(tiling.height, height), min(tiling.width, width)
    tops = window_starts(height, tile_height, tile_height - tiling.overlap, evenly=True)
    lefts = window_starts(width, tile_width, tile_width - tiling.overlap, evenly=True)
    weight = np.outer(_ramp(tile_height), _ramp(tile_width))
    mask: UInt8Array = np.empty((1, height, width), dtype=np.uint8)
    confidence: UInt8Array = np.empty((1, height, width), dtype=np.uint8)
    stripe: FloatArray | None = None
    total: FloatArray = np.zeros((tile_height, width), dtype=np.float32)
    for row, top in enumerate(tops):
        # Add the weighted logits of a row of tiles
        tiles = image[top : top + tile_height]
        for left, logits in _logits_of(backend, tiles, lefts, tile_width, batch):
            if stripe is None:
                stripe = np.zeros((logits.shape[0], tile_height, width), dtype=np.float32)
            stripe[:, :, left : left + tile_width] += weight * logits
            total[:, left : left + tile_width] += weight
        assert stripe is not None
        # Label the pixel rows above the next row of tiles
        done = (tops[row + 1] if row + 1 < len(tops) else height) - top
        blended = to_prediction({"logits": (stripe[:, :done] / total[:done])[None]})
        mask[:, top : top + done] = blended.mask
        assert blended.confidence is not None
        confidence[:, top : top + done] = blended.confidence
        stripe, total = _moved_up(stripe, done), _moved_up(total, done)
    return Prediction(mask, confidence)


def _logits_of(
    backend: Backend, tiles: UInt8Array, lefts: list[int], tile_width: int, batch: int
) -> Iterator[tuple[int, FloatArray]]:
    """Yield left edge and logits, (C, h, w), of each tile in a row of tiles, (h, W, 3)."""
    for start in range(0, len(lefts), batch):
        some = lefts[start : start + batch]
        logits = backend.predict(np.stack([tiles[:, left : left + tile_width] for left in some])).logits
        assert logits is not None
        yield from zip(some, logits, strict=True)


def window_starts(length: int, window: int, step: int, *, evenly: bool = False) -> list[int]:
    """Return the first pixels of windows that cover one axis.

    Args:
        length: Pixels of the axis.
        window: Pixels of a window.
        step: Pixels from one window to the next; the last window is moved back to the image's edge.
        evenly: Spread the same number of windows evenly instead; neighbours are at most `step` apart.
    """
    last = max(0, length - window)
    starts = [*range(0, last, max(1, step)), last]
    if not evenly:
        return starts
    return [round(index * last / max(1, len(starts) - 1)) for index in range(len(starts))]


def _ramp(length: int) -> FloatArray:
    """Return weights (length,) that rise from the edge to the middle and fall again; none is zero."""
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    weights: FloatArray = (distance / distance.max()).astype(np.float32)
    return weights


def _moved_up(rows: FloatArray, done: int) -> FloatArray:
    """Return (..., rows, W) without the first `done` rows, padded with zeros below."""
    moved = np.zeros_like(rows)
    kept = rows.shape[-2] - done
    if kept > 0:
        moved[..., :kept, :] = rows[..., done:, :]
    return moved
