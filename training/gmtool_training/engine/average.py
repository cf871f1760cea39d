"""Exponential moving average (EMA) of the weights, which is validated, saved and exported."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def averaged_copy(network: NetworkT) -> NetworkT:
    """Return a copy of a network in evaluation mode, without gradient."""
    return deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, *, decay: float, step: int) -> None:
    """Update the average in place: average = d average + (1 - d) network.

    Args:
        average: Copy from `averaged_copy`.
        network: Network in training; its running statistics are copied.
        decay: Decay d, in [0, 1).
        step: Index of the step, from 0. Early, d is (1 + step) / (10 + step), which discards the initial weights.
    """
    rate = min(decay, (1 + step) / (10 + step))
    averaged, current = list(average.parameters()), list(network.parameters())
    get_ema_multi_avg_fn(rate)(averaged, current, 0)  # type: ignore[no-untyped-call]
    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(buffer)
