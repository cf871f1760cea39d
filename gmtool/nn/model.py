"""The whole network: encoder, pyramid pooling, two MITrans modules, pixel and image classifiers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmtool.config import TIMM_PREFIX, ModelConfig
from gmtool.images import IMAGENET_MEAN, IMAGENET_STD
from gmtool.nn.encoder import Encoder
from gmtool.nn.mitrans import MITrans, NonLocal
from gmtool.nn.psp import PyramidPooling
from gmtool.nn.timm_encoder import TimmEncoder


class Output(NamedTuple):
    """What one forward pass gives."""

    logits: Tensor
    """(B, C, H, W): class scores at the input's size, before softmax."""
    image_logits: Tensor
    """(B, number of foreground classes): scores of "occurs in the image", before the sigmoid."""
    embedding: Tensor
    """(B, D): the encoder's last features averaged over the image, for matching."""


class GuidedMixNet(nn.Module):
    """One encoder and one decoder, used for labeled, unlabeled and mixed images alike.

    Args:
        config: Encoder, output stride, widths, and which MITrans modules have a non-local block.
        num_classes: Classes of the pixel classifier.
        num_foreground: Classes of the image classifier (used in training only).
    """

    def __init__(self, config: ModelConfig, *, num_classes: int, num_foreground: int) -> None:
        super().__init__()
        channels = config.decoder_channels
        self.output_stride = config.output_stride
        self._upscale = config.output_stride // 4  # the MITrans modules have doubled the resolution twice
        self.encoder = _build_encoder(config)
        self.psp = PyramidPooling(self.encoder.out_channels, channels)
        self.mitrans1 = MITrans(
            channels, channels // 4, skip_channels=self.encoder.skip_channels, non_local=config.non_local_1
        )
        self.mitrans2 = MITrans(channels // 4, channels // 8, skip_channels=0, non_local=config.non_local_2)
        self.classifier = nn.Conv2d(channels // 8, num_classes, 1)
        self.image_classifier = nn.Linear(channels, num_foreground)

    def forward(self, image: Tensor) -> Output:
        """Return the scores of normalised images, (B, 3, H, W) float, of any height and width."""
        height, width = image.shape[-2:]
        features = self.encoder(self.pad(image))
        context = self.psp(features.last)
        scores = self._classify(context, features.skip)
        return Output(
            logits=self.upscale(scores, height, width),
            image_logits=self.image_classifier(context.mean(dim=(2, 3))),
            embedding=features.last.mean(dim=(2, 3)),
        )

    def pad(self, image: Tensor) -> Tensor:
        """Return normalised images with zeros, the mean colour, right and below up to multiples of the stride."""
        height, width = image.shape[-2:]
        stride = self.output_stride
        # Not `-width % stride`: TensorRT-RTX takes the remainder of a negative number for negative
        right = (width + stride - 1) // stride * stride - width
        below = (height + stride - 1) // stride * stride - height
        return F.pad(image, (0, right, 0, below))

    def scores(self, padded: Tensor) -> Tensor:
        """Return the class scores of padded images, (B, C, h, w), before they are scaled up: what may be half."""
        features = self.encoder(padded)
        return self._classify(self.psp(features.last), features.skip)

    def upscale(self, scores: Tensor, height: int, width: int) -> Tensor:
        """Return `scores` at the size of the images, (B, C, height, width)."""
        # Upscale the logits, not the labels, to the padded input, then drop the padding
        upscaled = F.interpolate(scores, scale_factor=self._upscale, mode="bilinear")
        return upscaled[..., :height, :width]

    def _classify(self, context: Tensor, skip: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.mitrans2(self.mitrans1(context, skip)))
        return scores

    def materialize_attention(self) -> None:
        """Write attention as plain products from now on, as exporters need it. The values stay."""
        for module in self.modules():
            if isinstance(module, NonLocal):
                module.materialize = True


def _build_encoder(config: ModelConfig) -> Encoder | TimmEncoder:
    if config.encoder.startswith(TIMM_PREFIX):
        return TimmEncoder(config.encoder, output_stride=config.output_stride)
    return Encoder(config.encoder, output_stride=config.output_stride)


def normalize(image: Tensor) -> Tensor:
    """Return images (B, 3, H, W) of 0-255 as float32 with ImageNet's mean 0 and standard deviation 1."""
    mean = torch.tensor(IMAGENET_MEAN, device=image.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=image.device)[:, None, None]
    return (image.float() / 255 - mean) / std
