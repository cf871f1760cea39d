"""Decoder of GuidedMix-Net: pyramid pooling, two MITrans modules, pixel classifier."""

from __future__ import annotations

from torch import Tensor, nn

from gmtool.errors import ConfigError
from gmtool.nn.decoded import Decoded
from gmtool.nn.encoder import Attention, Features
from gmtool.nn.mitrans import MITrans
from gmtool.nn.psp import PyramidPooling


class GuidedMixDecoder(nn.Module):
    """Scores at a quarter of the encoder's output stride (GuidedMix-Net, Sec. 3.3).

    Args:
        strides: Strides of the encoder's feature maps; one of them is half of the last.
        in_channels: Channels of these maps.
        channels: Channels after pyramid pooling; the upsampling stages have a quarter and an eighth of them.
        num_classes: Classes of the pixel classifier.
        non_local_1: Non-local block in the first MITrans module.
        non_local_2: The same in the second.

    Raises:
        ConfigError: No map has half of the last one's stride, as in a plain vision transformer.
    """

    def __init__(
        self,
        strides: tuple[int, ...],
        in_channels: tuple[int, ...],
        *,
        channels: int,
        num_classes: int,
        non_local_1: bool,
        non_local_2: bool,
    ) -> None:
        super().__init__()
        if strides[-1] // 2 not in strides:
            raise ConfigError(
                f"model.decoder=guidedmix needs a feature map of half of the last one's stride; the encoder has "
                f"strides {', '.join(map(str, strides))}: take --set model.decoder=pyramid"
            )
        self._skip = len(strides) - 1 - strides[::-1].index(strides[-1] // 2)
        self.stride = strides[-1] // 4  # each of the two modules doubles the resolution
        """Input size over the size of the scores."""
        self.context_channels = channels
        """Channels of the pooled context."""
        # The first module attends before it doubles the resolution, the second after that
        at = strides[-1] // 2 if non_local_2 else strides[-1] if non_local_1 else None
        self.attention = None if at is None else Attention(at, heads=1)
        """Its attention over all positions, if it has any."""
        self.psp = PyramidPooling(in_channels[-1], channels)
        self.mitrans1 = MITrans(
            channels, channels // 4, skip_channels=in_channels[self._skip], non_local=non_local_1
        )
        self.mitrans2 = MITrans(channels // 4, channels // 8, skip_channels=0, non_local=non_local_2)
        self.classifier = nn.Conv2d(channels // 8, num_classes, 1)

    @property
    def class_layers(self) -> list[nn.Module]:
        """Return the layers with an output a class."""
        return [self.classifier]

    @property
    def stages(self) -> list[nn.Module]:
        """Parts that are called one after another."""
        return [self.psp, self.mitrans1, self.mitrans2]

    def forward(self, features: Features) -> Decoded:
        """Return class scores (B, C, h, w) and the context (B, channels) that the image classifier takes."""
        context: Tensor = self.psp(features[-1])
        scores = self.classifier(self.mitrans2(self.mitrans1(context, features[self._skip])))
        return Decoded(scores, context.mean(dim=(2, 3)))
