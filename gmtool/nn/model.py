"""The whole network: encoder, decoder, image classifier."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmtool.config import TIMM_PREFIX, ModelConfig
from gmtool.errors import ConfigError
from gmtool.images import IMAGENET_MEAN, IMAGENET_STD
from gmtool.nn.encoder import Attention, Encoder, Features
from gmtool.nn.guidedmix_decoder import GuidedMixDecoder
from gmtool.nn.mitrans import NonLocal
from gmtool.nn.pyramid_decoder import PyramidDecoder
from gmtool.nn.timm_encoder import TimmEncoder


class Output(NamedTuple):
    """Output of one forward pass."""

    logits: Tensor
    """(B, C, H, W): class scores at the input's size, before softmax."""
    image_logits: Tensor
    """(B, number of foreground classes): scores of "occurs in the image", before the sigmoid."""
    embedding: Tensor
    """(B, D): the encoder's last features averaged over the image, for matching."""


class GuidedMixNet(nn.Module):
    """One encoder and one decoder, used for labeled, unlabeled and mixed images alike.

    Args:
        config: Encoder, output stride, decoder and its widths.
        num_classes: Classes of the pixel classifier.
        num_foreground: Classes of the image classifier (used in training only).
    """

    def __init__(self, config: ModelConfig, *, num_classes: int, num_foreground: int) -> None:
        super().__init__()
        self.encoder = _build_encoder(config)
        self.decoder = _build_decoder(config, self.encoder, num_classes=num_classes)
        self.input_scale = config.input_scale
        self._upscale = self.decoder.stride / self.input_scale
        if self._upscale < 1:
            raise ConfigError(
                f"model.input_scale={config.input_scale} would give scores larger than the image: their "
                f"stride is {self.decoder.stride}; take a smaller scale"
            )
        self.image_classifier = nn.Linear(self.decoder.context_channels, num_foreground)

    @property
    def classifier(self) -> nn.Conv2d:
        """Return the pixel classifier, the last convolution."""
        return self.decoder.classifier

    @property
    def class_layers(self) -> list[nn.Module]:
        """Return the layers of the pixel classifier that have an output a class."""
        return self.decoder.class_layers

    @property
    def output_stride(self) -> int:
        """Size of the (scaled) image over the size of the encoder's last features."""
        stride: int = self.encoder.strides[-1]
        return stride

    @property
    def multiple(self) -> int:
        """Height and width of a padded image are multiples of this, pixels."""
        return math.ceil(self.encoder.multiple / self.input_scale)

    @property
    def attention(self) -> Attention | None:
        """Attention over all positions that needs most memory; None if there is none."""
        found = [each for each in (self.encoder.attention, self.decoder.attention) if each is not None]
        largest = max(found, key=lambda each: each.heads / each.stride**4, default=None)
        if largest is None:
            return None
        stride = largest.stride / self.input_scale
        return largest._replace(stride=int(stride) if stride.is_integer() else stride)

    @property
    def stages(self) -> list[nn.Module]:
        """Parts that are called one after another."""
        return [*self.encoder.stages, *self.decoder.stages]

    def forward(self, image: Tensor) -> Output:
        """Return the scores of normalised images, (B, 3, H, W) float, of any height and width."""
        height, width = image.shape[-2:]
        features = self.features(self.pad(image))
        decoded = self.decoder(features)
        return Output(
            logits=self.upscale(decoded.scores, height, width),
            image_logits=self.image_classifier(decoded.context),
            embedding=features[-1].mean(dim=(2, 3)),
        )

    def pad(self, image: Tensor) -> Tensor:
        """Return normalised images with zeros, the mean colour, right and below up to multiples of the stride."""
        height, width = image.shape[-2:]
        multiple = self.multiple
        # Not `-width % multiple`: TensorRT-RTX takes the remainder of a negative number for negative
        right = (width + multiple - 1) // multiple * multiple - width
        below = (height + multiple - 1) // multiple * multiple - height
        return F.pad(image, (0, right, 0, below))

    def scores(self, padded: Tensor) -> Tensor:
        """Return the class scores of padded images, (B, C, h, w), before they are scaled up: what may be half."""
        scores: Tensor = self.decoder(self.features(padded)).scores
        return scores

    def features(self, padded: Tensor) -> Features:
        """Return the encoder's feature maps of padded images, the finest first."""
        if self.input_scale > 1:
            padded = F.interpolate(padded, scale_factor=self.input_scale, mode="bilinear")
        elif self.input_scale < 1:  # the mean of each square: nothing between the pixels is left out
            padded = F.avg_pool2d(padded, round(1 / self.input_scale))
        features: Features = self.encoder(padded)
        return features

    def upscale(self, scores: Tensor, height: int, width: int) -> Tensor:
        """Return `scores` at the size of the images, (B, C, height, width)."""
        # Upscale the logits, not the labels, to the padded input, then drop the padding
        upscaled = F.interpolate(scores, scale_factor=self._upscale, mode="bilinear")
        return upscaled[..., :height, :width]

    def materialize_attention(self) -> None:
        """Write attention as plain products from now on, as exporters need it. The values stay."""
        for module in self.modules():
            if isinstance(module, NonLocal):
                module.materialize = True


def _build_encoder(config: ModelConfig) -> Encoder | TimmEncoder:
    if config.encoder.startswith(TIMM_PREFIX):
        return TimmEncoder(config.encoder, output_stride=config.output_stride)
    return Encoder(config.encoder, output_stride=config.output_stride or 8)


def _build_decoder(
    config: ModelConfig, encoder: Encoder | TimmEncoder, *, num_classes: int
) -> GuidedMixDecoder | PyramidDecoder:
    if config.decoder == "pyramid":
        return PyramidDecoder(
            encoder.strides, encoder.channels, channels=config.decoder_channels, num_classes=num_classes
        )
    return GuidedMixDecoder(
        encoder.strides,
        encoder.channels,
        channels=config.decoder_channels,
        num_classes=num_classes,
        non_local_1=config.non_local_1,
        non_local_2=config.non_local_2,
    )


def normalize(image: Tensor) -> Tensor:
    """Return images (B, 3, H, W) of 0-255 as float32 with ImageNet's mean 0 and standard deviation 1."""
    mean, std = _colors_on_card(image.device) if image.device.type == "cuda" else _colors(image.device)
    return (image.float() / 255 - mean) / std


def _colors(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ImageNet's mean and standard deviation, (3, 1, 1)."""
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


@cache
def _colors_on_card(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the same, copied once: each copy waits for the card."""
    return _colors(device)
