"""MITrans (GuidedMix-Net, Sec. 3.3): a non-local block, then upsampling by pixel shuffle with detail."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmtool.nn.psp import conv_bn_relu


class NonLocal(nn.Module):
    """Every position attends to every other one; the result is added to the input (Eq. 5).

    Queries and keys have half the channels. Attention is the softmax over key positions, scaled by
    1 / sqrt(d). `materialize` writes it as matmul, softmax, matmul: what ONNX at opset 18 and TensorRT
    take, at the price of a (H W) x (H W) matrix.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 2, 1)
        self.key = nn.Conv2d(channels, channels // 2, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.materialize = False

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for features (B, C, H, W)."""
        # Channels last and contiguous, or torch takes the path that makes the matrix
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2).contiguous() for conv in (self.query, self.key, self.value)
        )
        if self.materialize:
            # For half precision: scaled before the product, which could overflow, and normalised in float32
            scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(1, 2))
            mixed = torch.matmul(torch.softmax(scores.float(), dim=-1).to(value.dtype), value)
        else:
            mixed = _attend(query, key, value)
        return x + mixed.transpose(1, 2).reshape(x.shape)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return attention without its matrix of positions, (B, N, C).

    Args:
        query: (B, N, D), contiguous.
        key: The same.
        value: (B, N, C), contiguous, C >= D.
    """
    scale = query.shape[-1] ** -0.5
    if query.device.type == "cpu":  # its fused kernel takes one width: zeros add nothing to a product
        missing = value.shape[-1] - query.shape[-1]
        query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=scale)[:, 0]


class PixelShuffleUp(nn.Module):
    """Twice the resolution: 3x3 convolution to four times the channels, then PixelShuffle, ICNR start."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        _icnr_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, 2 H, 2 W) for features (B, in_channels, H, W)."""
        upsampled: Tensor = self.shuffle(self.conv(x))
        return upsampled


class MITrans(nn.Module):
    """Non-local block (optional), twofold upsampling, and detail from an earlier layer (optional).

    Args:
        in_channels: Channels of the features.
        out_channels: Channels of the result.
        skip_channels: Channels of the earlier layer; 0 for none.
        non_local: Whether positions attend to each other first.
    """

    def __init__(self, in_channels: int, out_channels: int, *, skip_channels: int, non_local: bool) -> None:
        super().__init__()
        self.attention: nn.Module = NonLocal(in_channels) if non_local else nn.Identity()
        self.up = PixelShuffleUp(in_channels, out_channels)
        reduced_channels = min(48, out_channels)
        self.reduce_skip = conv_bn_relu(skip_channels, reduced_channels, kernel_size=1) if skip_channels else None
        self.fuse = (
            nn.Sequential(
                conv_bn_relu(out_channels + reduced_channels, out_channels, kernel_size=3),
                conv_bn_relu(out_channels, out_channels, kernel_size=3),
            )
            if skip_channels
            else None
        )

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return (B, out_channels, 2 H, 2 W); `skip` is (B, skip_channels, 2 H, 2 W)."""
        upsampled: Tensor = self.up(self.attention(x))
        if self.reduce_skip is None or self.fuse is None:
            return upsampled
        assert skip is not None
        fused: Tensor = self.fuse(torch.cat([upsampled, self.reduce_skip(skip)], dim=1))
        return fused


@torch.no_grad()
def _icnr_(weight: Tensor) -> None:
    """Start a convolution before PixelShuffle(2) so that its four sub-pixels agree (Aitken et al. 2017)."""
    kernel = torch.empty(weight.shape[0] // 4, *weight.shape[1:])
    nn.init.kaiming_normal_(kernel, nonlinearity="linear")
    weight.copy_(kernel.repeat_interleave(4, dim=0))
