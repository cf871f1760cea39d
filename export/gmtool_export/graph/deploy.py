"""Deployment graph: from a decoded image to its mask, pre- and postprocessing included."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gmtool.artifact.spec import OutputName
from gmtool.nn.model import GuidedMixNet, normalize
from gmtool.nn.same_padding import make_padding_constant

OUTPUTS: tuple[OutputName, ...] = ("mask", "confidence", "logits")
"""Outputs of the graph; a file keeps some of them. The embedding is computed if it is asked for."""
NO_LABEL = 255
"""Label of all pixels of an image whose scores are not finite. No class has it: there are at most 255."""


class DeployModel(nn.Module):
    """Normalisation, padding to the stride, network, upsampling of the logits and argmax, in that order.

    Args:
        network: Trained network in evaluation mode; copied.
        half: Compute the network in float16. Normalisation, classifier scores, upsampling and softmax stay
            float32.
        embedding: Return an embedding of each image too.
    """

    def __init__(self, network: GuidedMixNet, *, half: bool = False, embedding: bool = False) -> None:
        super().__init__()
        self.embedding = embedding
        self.dtype = torch.float16 if half else torch.float32
        self.network = copy.deepcopy(network).eval().to(self.dtype)
        self.network.materialize_attention()
        make_padding_constant(self.network)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return mask, confidence and logits of RGB images, (N, H, W, 3) uint8, of any size.

        Returns:
            Class indices, (N, H, W) uint8; the largest probability times 255, (N, H, W) uint8; scores before
            softmax, (N, C, H, W) float32. An image whose scores are not finite has label `NO_LABEL` and confidence
            0. If asked for, the means of the encoder's feature maps, (N, D) float32.
        """
        height, width = image.shape[1:3]
        # The cast comes before the transpose: TensorRT's parser refuses to transpose uint8
        x = normalize(image.float().permute(0, 3, 1, 2))
        features = self.network.features(self.network.pad(x).to(self.dtype))
        scores = self.network.decoder(features).scores.float()
        logits = self.network.upscale(scores, height, width)
        finite = _finite_images(scores)
        mask = torch.where(finite, logits.argmax(dim=1), NO_LABEL)
        # The largest probability is 1 / sum(exp(logits - largest)), without memory for all probabilities
        total = torch.exp(logits - logits.amax(dim=1, keepdim=True)).sum(dim=1)
        confidence = torch.where(finite, torch.round(255 / total), 0.0)
        found = mask.to(torch.uint8), confidence.to(torch.uint8), logits
        if not self.embedding:
            return found
        return (*found, torch.cat([each.float().mean(dim=(2, 3)) for each in features], dim=1))


def _finite_images(scores: Tensor) -> Tensor:
    """Return (N, 1, 1) bool: all scores of an image are finite. A comparison with NaN is false in every runtime.

    Without an Unsqueeze of two axes, which OpenCV 4 refuses.
    """
    finite = (scores.abs() <= torch.finfo(torch.float32).max).float()
    return finite.amin(dim=1).amin(dim=(1, 2), keepdim=True) > 0.5
