"""Position embeddings of vision transformers at other image sizes, as two matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CUBIC = -0.5
"""Coefficient of the cubic kernel in torch's antialiased bicubic interpolation (and in Pillow's)."""


def resample_position_embedding(
    embedding: Tensor,
    new_size: Sequence[int],
    old_size: Sequence[int] | None = None,
    num_prefix_tokens: int = 1,
) -> Tensor:
    """Return the position embedding of a grid of patches for another grid: timm's `resample_abs_pos_embed`.

    timm calls `interpolate(mode="bicubic", antialias=True)`, whose ONNX node TensorRT refuses. The same
    interpolation along each axis is a small matrix that is computed from the sizes.

    Args:
        embedding: (1, prefix + old height * old width, D), the tokens before the patches first.
        new_size: Height and width of the wanted grid, patches.
        old_size: The same of the embedding's grid; by default it is square.
        num_prefix_tokens: Tokens before those of the patches; they are kept as they are.

    Returns:
        (1, prefix + new height * new width, D).
    """
    prefix, patches = embedding[:, :num_prefix_tokens], embedding[:, num_prefix_tokens:]
    side = int(patches.shape[1] ** 0.5)
    old_height, old_width = old_size or (side, side)
    grid = patches.float().reshape(old_height, old_width, -1).permute(2, 0, 1)
    rows = bicubic_matrix(old_height, new_size[0], grid)
    columns = bicubic_matrix(old_width, new_size[1], grid)
    resampled = torch.matmul(rows, torch.matmul(grid, columns.transpose(0, 1)))
    return torch.cat([prefix, resampled.flatten(1).transpose(0, 1)[None].to(embedding.dtype)], dim=1)


def bicubic_matrix(length: int, target: int, like: Tensor) -> Tensor:
    """Return (target, length): row i holds the weights with which positions give position i of the target.

    As torch's `interpolate(mode="bicubic", antialias=True)` without aligned corners: where the target is
    shorter, the kernel is as much wider.
    """
    scale = length / target
    # Python's max would fix the comparison when a graph with dynamic sizes is traced
    width = torch.clamp(torch.arange(1, device=like.device) + scale, min=1.0)
    centre = (torch.arange(target, device=like.device) + 0.5) * scale
    position = torch.arange(length, device=like.device) + 0.5
    weights = _cubic(((position[None, :] - centre[:, None]) / width).abs())
    return (weights / weights.sum(dim=1, keepdim=True)).to(like.dtype)


def _cubic(x: Tensor) -> Tensor:
    """Return the cubic convolution kernel (Keys 1981) at distances `x` >= 0, zero from 2 on."""
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * CUBIC - 4 * CUBIC
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
