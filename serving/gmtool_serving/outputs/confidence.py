"""Masks without the pixels that a model is not sure of."""

from __future__ import annotations

import math

import numpy as np

from gmtool.images import UInt8Array


def ignore_unsure(
    mask: UInt8Array, confidence: UInt8Array, min_confidence: float, *, ignore_index: int
) -> UInt8Array:
    """Return a mask with `ignore_index` where the confidence is below a limit.

    Args:
        mask: Class indices, (H, W) or (N, H, W).
        confidence: Largest probability times 255, of the same shape.
        min_confidence: Limit, in [0, 1].
        ignore_index: Label of ignored pixels.
    """
    lowest = math.ceil(255 * min_confidence - 1e-9)  # 0.2 times 255 is not quite 51
    unsure: UInt8Array = np.where(confidence < lowest, np.uint8(ignore_index), mask)
    return unsure
