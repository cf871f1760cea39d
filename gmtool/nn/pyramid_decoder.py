"""Pyramid decoder: every level of the encoder projected, brought to the finest, summed; a light head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gmtool.nn.decoded import Decoded
from gmtool.nn.encoder import Attention, Features


class PyramidDecoder(nn.Module):
    """Scores at the stride of the finest feature map: a linear classifier of all levels, plus a small network.

    The small network starts at zero, so training starts from the linear classifier, which few labels suffice for.

    Args:
        strides: Strides of the encoder's feature maps, each a multiple of the first.
        in_channels: Channels of these maps.
        channels: Channels of the small network.
        num_classes: Classes of the pixel classifier.
    """

    def __init__(
        self, strides: tuple[int, ...], in_channels: tuple[int, ...], *, channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.stride = strides[0]
        """Input size over the size of the scores."""
        self.context_channels = in_channels[-1]
        """Channels of the pooled context."""
        self.attention: Attention | None = None
        """It attends to no other positions."""
        self._factors = [stride // self.stride for stride in strides]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in in_channels)
        self.linear = nn.ModuleList(
            nn.Conv2d(width, num_classes, 1, bias=level == 0) for level, width in enumerate(in_channels)
        )
        self.project = nn.ModuleList(nn.Conv2d(width, channels, 1, bias=False) for width in in_channels)
        self.refine = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    @property
    def stages(self) -> list[nn.Module]:
        """Parts that are called one after another."""
        return [self.refine]

    def forward(self, features: Features) -> Decoded:
        """Return class scores (B, C, h, w) and the context (B, channels) that the image classifier takes."""
        normalized = [norm(each) for norm, each in zip(self.norms, features, strict=True)]
        linear = self._sum(self.linear, normalized)
        refined = self.refine(self._sum(self.project, normalized))
        return Decoded(linear + self.classifier(refined), features[-1].mean(dim=(2, 3)))

    def _sum(self, layers: nn.ModuleList, features: Features) -> Tensor:
        """Return the sum of all levels, each through its layer, at the size of the finest."""
        total: Tensor | None = None
        for layer, feature, factor in zip(layers, features, self._factors, strict=True):
            # The layer first: it has fewer channels, and commutes with the interpolation
            level = layer(feature)
            if factor > 1:
                level = F.interpolate(level, scale_factor=factor, mode="bilinear")
            total = level if total is None else total + level
        assert total is not None
        return total
