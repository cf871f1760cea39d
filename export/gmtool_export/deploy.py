"""The graph that is deployed: from an image as decoded to its mask, with nothing left to the client."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmtool.nn.model import GuidedMixNet, Output, normalize


class DeployModel(nn.Module):
    """Normalisation, padding to the stride, network, upsampling of the logits and argmax, in that order.

    Args:
        network: A trained network, in evaluation mode.
    """

    def __init__(self, network: GuidedMixNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return class indices, (N, H, W) uint8, for RGB images (N, H, W, 3) uint8 of any size."""
        # The cast comes before the transpose: TensorRT's parser refuses to transpose uint8
        x = image.float().permute(0, 3, 1, 2)
        output: Output = self.network(normalize(x))
        return output.logits.argmax(dim=1).to(torch.uint8)
