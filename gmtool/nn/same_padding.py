"""TensorFlow's `same` convolutions with constant padding, for maps whose sides are multiples of the stride."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

SAME = "Conv2dSame"
"""timm's class of convolutions that compute their padding from the size of each map."""


class PaddedConv2d(nn.Conv2d):
    """Convolution that pads by `(kernel - 1) * dilation + 1 - stride` pixels, the odd one right/below.

    That is `same` padding of maps whose sides are multiples of the stride. The general one depends on the size:
    torch.export then needs minutes to simplify the sizes of a network of such layers, and the graph computes them.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of a map (B, C, H, W)."""
        height, width = (
            max((kernel - 1) * dilation + 1 - stride, 0)
            for kernel, dilation, stride in zip(self.kernel_size, self.dilation, self.stride, strict=True)
        )
        padding = (height // 2, width // 2)
        if height % 2 or width % 2:
            input = F.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
            padding = (0, 0)
        return F.conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def make_padding_constant(network: nn.Module) -> None:
    """Let all `same` convolutions of a network pad by constants, in place; the weights stay.

    The images must be padded to multiples of the encoder's largest stride, as `GuidedMixNet.pad` does.
    """
    for module in network.modules():
        if type(module).__name__ == SAME:
            module.__class__ = PaddedConv2d
