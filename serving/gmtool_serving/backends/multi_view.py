"""Sliding-window, multi-scale and flip inference with averaged logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from gmtool.artifact.shapes import parse_size
from gmtool.errors import BackendError, ConfigError, UsageError
from gmtool.images import UInt8Array
from gmtool.report.report import Protocol
from gmtool_serving.backends.base import Backend, refuse_unknown_labels
from gmtool_serving.backends.tiles import window_starts

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Averaging:
    """Options of test-time averaging; by default one pass over the whole image."""

    window: tuple[int, int] | None = None
    """Height and width of sliding windows, pixels; None for the whole image."""
    stride: tuple[int, int] | None = None
    """Vertical and horizontal step of the windows, pixels; None for two thirds of the window."""
    scales: tuple[float, ...] = (1.0,)
    """Scale factors of the image; their logits are averaged."""
    flip: bool = False
    """Also predict the mirror image of each scale."""

    def __post_init__(self) -> None:
        if self.stride is not None and self.window is None:
            raise UsageError("--stride needs --sliding HxW")
        if self.window is not None and min(self.window) < 1:
            raise UsageError(f"--sliding {self.window[0]}x{self.window[1]}: expected at least one pixel")
        if self.window is not None and not all(
            1 <= step <= length for step, length in zip(self.steps, self.window, strict=True)
        ):
            raise UsageError("--stride: expected 1 to the window's own size, else pixels would be left out")
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise UsageError(f"--scales {list(self.scales)}: expected scales from 0.1 to 10")

    @property
    def is_needed(self) -> bool:
        """True unless one pass over the whole image is enough."""
        return self.window is not None or self.scales != (1.0,) or self.flip

    @property
    def steps(self) -> tuple[int, int]:
        """Vertical and horizontal step of the windows, pixels."""
        assert self.window is not None
        return self.stride or (max(1, 2 * self.window[0] // 3), max(1, 2 * self.window[1] // 3))

    def protocol(self) -> Protocol:
        """Return the protocol for the report."""
        if self.window is None:
            return Protocol(scales=self.scales, flip=self.flip)
        (height, width), (down, across) = self.window, self.steps
        resolution = f"windows of {height}x{width}, stride {down}x{across}, logits averaged"
        return Protocol(resolution=resolution, scales=self.scales, flip=self.flip)


def parse_averaging(
    sliding: str | tuple[int, int] | None,
    stride: str | tuple[int, int] | None,
    scales: str | Sequence[float],
    *,
    flip: bool,
) -> Averaging:
    """Return averaging from sizes such as "512x1024" or (512, 1024), and scales such as "0.5,1.0" or (0.5, 1.0).

    Raises:
        UsageError: Not a size or a number, or values that leave pixels out.
    """
    try:
        numbers = tuple(float(scale) for scale in (scales.split(",") if isinstance(scales, str) else scales))
    except ValueError as error:
        raise UsageError(f"--scales {scales}: expected numbers with commas, such as 0.5,1.0,1.5") from error
    window = None if sliding is None else parse_size(sliding, where="--sliding")
    steps = None if stride is None else parse_size(stride, where="--stride")
    return Averaging(window, steps, numbers, flip)


def check_averaging(backend: Backend, averaging: Averaging) -> None:
    """Check that a model has the logits that averaging needs.

    Raises:
        ConfigError: It has none.
    """
    if averaging.is_needed and "logits" not in backend.spec.outputs:
        raise ConfigError(
            f"--sliding, --scales and --flip average logits, but {backend.model} gives "
            f"{' and '.join(backend.spec.outputs)}: export the model with --output logits"
        )


def predict_mask(backend: Backend, image: UInt8Array, averaging: Averaging) -> UInt8Array:
    """Return the mask, (H, W) uint8, of an RGB image, (H, W, 3) uint8.

    Images and logits are resized bilinearly, with half-pixel centres, and antialiased when shrunk.

    Raises:
        BackendError: The runtime failed, scores are not finite, or a label is outside the classes.
    """
    if not averaging.is_needed:
        mask: UInt8Array = backend.predict(image[None]).mask[0]
        refuse_unknown_labels(mask, len(backend.spec.classes))
        return mask
    height, width = image.shape[:2]
    total: Float32Array | None = None
    for scale in averaging.scales:
        scaled = _resize_image(image, max(1, round(scale * height)), max(1, round(scale * width)))
        logits = _logits(backend, scaled, averaging)
        if averaging.flip:
            logits = logits + _logits(backend, np.ascontiguousarray(scaled[:, ::-1]), averaging)[:, :, ::-1]
        logits = _resize_logits(logits, height, width)
        total = logits if total is None else total + logits
    assert total is not None
    if not np.isfinite(total).all():
        raise BackendError("the model's scores are not finite")
    # The sum has its maximum where the mean has it
    best: UInt8Array = total.argmax(axis=0).astype(np.uint8)
    refuse_unknown_labels(best, len(backend.spec.classes))
    return best


def _logits(backend: Backend, image: UInt8Array, averaging: Averaging) -> Float32Array:
    """Return logits (C, H, W) of one image: of the whole image, or averaged over the windows at each pixel."""
    if averaging.window is None:
        return _whole(backend, image)
    total: Float32Array | None = None
    height, width = image.shape[:2]
    covered = np.zeros((height, width), dtype=np.float32)
    for rows, columns in _windows(height, width, averaging):
        logits = _whole(backend, np.ascontiguousarray(image[rows, columns]))
        if total is None:
            total = np.zeros((len(logits), height, width), dtype=np.float32)
        total[:, rows, columns] += logits
        covered[rows, columns] += 1
    assert total is not None
    total /= covered
    return total


def _windows(height: int, width: int, averaging: Averaging) -> Iterator[tuple[slice, slice]]:
    assert averaging.window is not None
    (window_height, window_width), (down, across) = averaging.window, averaging.steps
    for top in window_starts(height, window_height, down):
        for left in window_starts(width, window_width, across):
            yield slice(top, min(height, top + window_height)), slice(left, min(width, left + window_width))


def _whole(backend: Backend, image: UInt8Array) -> Float32Array:
    logits = backend.predict(image[None]).logits
    assert logits is not None  # see check_averaging
    of_image: Float32Array = logits[0]
    return of_image


def _resize_image(image: UInt8Array, height: int, width: int) -> UInt8Array:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _resize_logits(logits: Float32Array, height: int, width: int) -> Float32Array:
    if logits.shape[1:] == (height, width):
        return logits
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(channel)).resize((width, height), Image.Resampling.BILINEAR)
        )
        for channel in logits
    ]
    return np.stack(channels)
