"""Copies to a card that do not wait for it."""

from __future__ import annotations

import torch
from torch import Tensor


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of host memory on a device; to a card it is copied from pinned memory.

    From other memory torch waits until the card has done all that it was given before.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
