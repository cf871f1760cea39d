"""Output of a decoder."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Decoded(NamedTuple):
    """Scores and context that a decoder computes from feature maps."""

    scores: Tensor
    """(B, num_classes, H / stride, W / stride): class scores before softmax."""
    context: Tensor
    """(B, context_channels): what the image classifier sees."""
