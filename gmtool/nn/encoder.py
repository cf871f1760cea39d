"""Encoders: torchvision's ResNets with dilation instead of stride, and a narrow one for toy sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock


class Attention(NamedTuple):
    """Attention of every position to every other one: what an exported graph needs memory for."""

    stride: float
    """Image size over the size of the grid of positions."""
    heads: int


Features = list[Tensor]
"""Feature maps of one forward pass, the finest first: (B, channels[i], H / strides[i], W / strides[i]) each."""


class Encoder(nn.Module):
    """A ResNet without its classifier. Parameters keep torchvision's names, so its weights fit.

    Args:
        name: A torchvision ResNet, or `toy`.
        output_stride: 8, 16 or 32; the strides beyond it become dilations.
    """

    def __init__(self, name: str, *, output_stride: int) -> None:
        super().__init__()
        trunk = _ToyTrunk() if name == "toy" else get_model(name, weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool
        self.layer1, self.layer2 = trunk.layer1, trunk.layer2
        self.layer3, self.layer4 = trunk.layer3, trunk.layer4
        if output_stride == 8:
            _dilate(self.layer3, first=1, rest=2)
            _dilate(self.layer4, first=2, rest=4)
        elif output_stride == 16:
            _dilate(self.layer4, first=1, rest=2)
        self.strides: tuple[int, ...] = (4, 8, min(16, output_stride), min(32, output_stride))
        """Input size over the size of each feature map."""
        self.channels = tuple(map(_out_channels, self.levels))
        """Channels of each feature map."""
        self.multiple = max(self.strides)
        """Height and width of an input are multiples of this, pixels."""
        self.license: str | None = None if name == "toy" else "bsd-3-clause"
        """Licence of torchvision's weights."""
        self.attention: Attention | None = None
        """Its attention over all positions, if it has any."""

    @property
    def levels(self) -> list[nn.Sequential]:
        """Stages whose outputs are the feature maps."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    @property
    def stages(self) -> list[nn.Module]:
        """Parts that are called one after another."""
        return list(self.levels)

    def forward(self, image: Tensor) -> Features:
        """Return the features of normalised images (B, 3, H, W), H and W multiples of `multiple`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class _ToyTrunk(nn.Module):
    """Four stages of one torchvision block each, an eighth as wide as ResNet-18."""

    def __init__(self, widths: Sequence[int] = (16, 24, 48, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _toy_stage(widths[0], widths[0], stride=1)
        self.layer2 = _toy_stage(widths[0], widths[1], stride=2)
        self.layer3 = _toy_stage(widths[1], widths[2], stride=2)
        self.layer4 = _toy_stage(widths[2], widths[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _toy_stage(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
        )
    return nn.Sequential(BasicBlock(in_channels, channels, stride, downsample))


def _dilate(stage: nn.Sequential, *, first: int, rest: int) -> None:
    """Turn a stage's stride into dilation, as torchvision's `replace_stride_with_dilation` does.

    torchvision refuses it for the basic blocks of ResNet-18 and 34; this works for both kinds.
    """
    for index, block in enumerate(stage):
        dilation = first if index == 0 else rest
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if module.kernel_size == (3, 3):
                    module.dilation = module.padding = (dilation, dilation)


def _out_channels(stage: nn.Sequential) -> int:
    convolutions = [module for module in stage[-1].modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1].out_channels
