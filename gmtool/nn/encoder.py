"""Encoders: torchvision's ResNets with dilation instead of stride, and a narrow one for toy sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock


class Features(NamedTuple):
    """Feature maps of one forward pass."""

    skip: Tensor
    """(B, C, H / s, W / s) with s half the output stride: what the decoder adds detail from."""
    last: Tensor
    """(B, C, H / S, W / S) with S the output stride."""


class Encoder(nn.Module):
    """A ResNet without its classifier. Parameters keep torchvision's names, so its weights fit.

    Args:
        name: A torchvision ResNet, or `toy`.
        output_stride: 8 or 16; the strides beyond it become dilations.
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
        else:
            _dilate(self.layer4, first=1, rest=2)
        self._skip_layer = 1 if output_stride == 8 else 2
        self.skip_channels = _out_channels(self.layer1 if self._skip_layer == 1 else self.layer2)
        self.out_channels = _out_channels(self.layer4)

    @property
    def stages(self) -> list[nn.Module]:
        """Parts that are called one after another."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def forward(self, image: Tensor) -> Features:
        """Return the features of normalised images (B, 3, H, W), H and W multiples of the output stride."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        layer1 = self.layer1(x)
        layer2 = self.layer2(layer1)
        last = self.layer4(self.layer3(layer2))
        return Features(skip=layer1 if self._skip_layer == 1 else layer2, last=last)


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
