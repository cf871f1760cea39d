"""Pyramid decoder: a small classifier of every position, from all levels of the encoder and their surroundings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gmtool.nn.decoded import Decoded
from gmtool.nn.encoder import Attention, Features

SCORE_STRIDE = 8
"""Stride of the scores, where the encoder has a level of it or finer ones."""
LOCAL_PX = 9
"""Side of the square of positions of the last level whose mean stands for the surroundings."""


class PyramidDecoder(nn.Module):
    """Standardise each level, project it, bring it to one stride, and sum; ReLU, dropout, classifier.

    Two more levels are means of the last one: over a square around each position, and over the image. The sum of
    projections is one linear layer of all levels concatenated, so few labels can fit it in closed form or nearly.

    Args:
        strides: Strides of the encoder's feature maps, the finest first.
        in_channels: Channels of these maps.
        channels: Width of the hidden layer; 0 for none: a linear classifier.
        num_classes: Classes of the pixel classifier.
        dropout: Share of the hidden layer's channels that is dropped in training.
    """

    def __init__(
        self,
        strides: tuple[int, ...],
        in_channels: tuple[int, ...],
        *,
        channels: int,
        num_classes: int,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.stride = next((stride for stride in strides if stride >= SCORE_STRIDE), strides[-1])
        """Input size over the size of the scores."""
        self.context_channels = in_channels[-1]
        """Channels of the pooled context."""
        self.attention: Attention | None = None
        """It attends to no other positions."""
        self._strides = (*strides, strides[-1])
        widths = (*in_channels, in_channels[-1], in_channels[-1])
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for width in widths)
        out_channels = channels or num_classes
        # The bias of the sum is that of the first projection
        self.project = nn.ModuleList(
            nn.Conv2d(width, out_channels, 1, bias=level == 0) for level, width in enumerate(widths)
        )
        self.hidden = nn.Sequential(nn.ReLU(), nn.Dropout2d(dropout)) if channels else nn.Sequential()
        self.last = nn.Conv2d(channels, num_classes, 1) if channels else None

    @property
    def classifier(self) -> nn.Conv2d:
        """Return the last convolution: its outputs are scores, or are summed to scores."""
        first = self.project[0]
        assert isinstance(first, nn.Conv2d)
        return first if self.last is None else self.last

    @property
    def class_layers(self) -> list[nn.Module]:
        """Return the layers with an output a class."""
        return list(self.project) if self.last is None else [self.last]

    @property
    def stages(self) -> list[nn.Module]:
        """Parts that are called one after another."""
        return [*self.project, self.hidden]

    def levels(self, features: Features) -> list[Tensor]:
        """Return the inputs of the projections: the levels, none finer than the scores, and two means of the last.

        Args:
            features: Feature maps of the encoder.

        Returns:
            Maps of their own strides; the last one is (B, C, 1, 1).
        """
        last = features[-1]
        local = F.avg_pool2d(last, LOCAL_PX, stride=1, padding=LOCAL_PX // 2, count_include_pad=False)
        finer = [self.stride // stride for stride in self._strides]
        maps = [F.avg_pool2d(each, by) if by > 1 else each for each, by in zip(features, finer, strict=False)]
        return [*maps, local, last.mean(dim=(2, 3), keepdim=True)]

    def forward(self, features: Features) -> Decoded:
        """Return class scores (B, C, h, w) and the context (B, channels) that the image classifier takes."""
        *maps, whole = self.levels(features)
        # The mean over the image is one vector: it is added to every position
        total: Tensor = self.project[-1](self.norms[-1](whole))
        for each, stride, norm, project in zip(maps, self._strides, self.norms, self.project, strict=False):
            # Projected first: it commutes with the interpolation, and the map is small
            level = project(norm(each))
            if stride > self.stride:
                level = F.interpolate(level, scale_factor=stride // self.stride, mode="bilinear")
            total = total + level
        scores = total if self.last is None else self.last(self.hidden(total))
        return Decoded(scores, features[-1].mean(dim=(2, 3)))
