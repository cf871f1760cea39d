"""A running mean of the weights: steadier than the last ones, and what is validated and saved in their place."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def averaged_copy(network: NetworkT) -> NetworkT:
    """Return a copy of a network that no optimiser moves, in evaluation mode."""
    return deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, *, decay: float, step: int) -> None:
    """Move the average towards the network: average = d average + (1 - d) network.

    Args:
        average: From `averaged_copy`; changed in place.
        network: The trained one. Its running statistics are copied.
        decay: d, in [0, 1).
        step: Steps done before. At first d is (1 + step) / (10 + step), so that random weights are forgotten.
    """
    rate = min(decay, (1 + step) / (10 + step))
    averaged, current = list(average.parameters()), list(network.parameters())
    get_ema_multi_avg_fn(rate)(averaged, current, 0)  # type: ignore[no-untyped-call]
    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(buffer)
