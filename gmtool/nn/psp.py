"""Pyramid pooling (PSPNet) whose pooling is two matrix products, so that it exports with dynamic sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

BINS = (1, 2, 3, 6)


def adaptive_average_pool(x: Tensor, bins: int) -> Tensor:
    """Return the averages of a bins x bins grid of regions, equal to `adaptive_avg_pool2d`.

    torch's exporter turns `adaptive_avg_pool2d` with dynamic height and width into a graph that is
    silently wrong; each axis as a small matrix is right in ONNX Runtime and TensorRT.

    Args:
        x: (B, C, H, W), any H and W.
        bins: Regions an axis.

    Returns:
        (B, C, bins, bins) of the same dtype.
    """
    if bins == 1:  # TensorRT-RTX cannot compile the matrix form of a plain mean
        return x.float().mean(dim=(-2, -1), keepdim=True).to(x.dtype)  # half precision would overflow in the sum
    rows = _matrix(_averaging_matrix, x.shape[-2], bins, x)
    columns = _matrix(_averaging_matrix, x.shape[-1], bins, x)
    return torch.matmul(rows, torch.matmul(x, columns.transpose(0, 1)))


def bilinear_resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `x` (B, C, h, w) at another size, equal to `interpolate(mode="bilinear")` without aligned corners.

    As two matrix products too: TensorRT-RTX refuses a Resize whose target is computed from the input's shape.
    """
    if x.shape[-2] == x.shape[-1] == 1:
        return x.expand(-1, -1, *size)
    rows = _matrix(_interpolation_matrix, x.shape[-2], size[0], x)
    columns = _matrix(_interpolation_matrix, x.shape[-1], size[1], x)
    return torch.matmul(rows, torch.matmul(x, columns.transpose(0, 1)))


Make = Callable[[int, int, torch.device], Tensor]
"""From two lengths to a matrix of float32 on a device."""


def _matrix(make: Make, length: int, target: int, like: Tensor) -> Tensor:
    """Return a matrix in the dtype and on the device of `like`.

    It is kept for the next call with the same sizes: to make it takes 20 kernels, a sixth of those that a training
    step starts. It is kept for good, some kilobytes, since a captured CUDA graph reads it where it lies. A graph
    that is traced computes it from its input's size, and a tensor that only describes one (FakeTensor) has no
    values to keep.
    """
    if torch.compiler.is_compiling() or type(like) is not Tensor or not isinstance(length, int):
        return make(length, target, like.device).to(like.dtype)
    return _kept(make, length, target, like.device, like.dtype)


@cache
def _kept(make: Make, length: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(mode=False):  # else the next training step could not use it
        return make(length, target, device).to(dtype)


def _averaging_matrix(length: int, bins: int, device: torch.device) -> Tensor:
    """Return (bins, length): row i averages positions floor(i n / bins) to ceil((i + 1) n / bins)."""
    position = torch.arange(length, device=device)[None, :]
    index = torch.arange(bins, device=device)[:, None]
    start = index * length // bins
    end = ((index + 1) * length + bins - 1) // bins
    inside = ((position >= start) & (position < end)).float()
    return inside / inside.sum(dim=1, keepdim=True)


def _interpolation_matrix(length: int, target: int, device: torch.device) -> Tensor:
    """Return (target, length): row i holds the weights of the two positions around (i + 0.5) n / m - 0.5."""
    position = (torch.arange(target, device=device) + 0.5) * length / target - 0.5
    distance = position.clamp(0, length - 1)[:, None] - torch.arange(length, device=device)[None, :]
    return (1 - distance.abs()).clamp(min=0)


class PyramidPooling(nn.Module):
    """Concatenate the features with their averages over 1, 4, 9 and 36 regions, then reduce the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        branch_channels = in_channels // len(BINS)
        self.branches = nn.ModuleList(conv_bn_relu(in_channels, branch_channels, kernel_size=1) for _ in BINS)
        self.reduce = conv_bn_relu(in_channels + branch_channels * len(BINS), out_channels, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H, W) for features (B, in_channels, H, W)."""
        size = (x.shape[-2], x.shape[-1])
        pooled = [
            bilinear_resize(branch(adaptive_average_pool(x, bins)), size)
            for branch, bins in zip(self.branches, BINS, strict=True)
        ]
        reduced: Tensor = self.reduce(torch.cat([x, *pooled], dim=1))
        return reduced


def conv_bn_relu(in_channels: int, out_channels: int, *, kernel_size: int) -> nn.Sequential:
    """Return a convolution that keeps the size, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
