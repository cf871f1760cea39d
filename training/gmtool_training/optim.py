"""The optimiser and the schedule of the recipe."""

from __future__ import annotations

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR

from gmtool.config import OptimConfig
from gmtool.nn.model import GuidedMixNet


def build_optimizer(network: GuidedMixNet, config: OptimConfig) -> Optimizer:
    """Return SGD with two parameter groups: the encoder, and everything else at a multiple of its rate.

    A frozen encoder's group is empty.
    It is fused: such an optimiser can be told on the device to skip a step. The network must be where it stays.
    """
    encoder = [parameter for parameter in network.encoder.parameters() if parameter.requires_grad]
    known = {id(parameter) for parameter in network.encoder.parameters()}
    heads = [parameter for parameter in network.parameters() if id(parameter) not in known]
    optimizer = SGD(
        [
            {"params": encoder, "lr": config.lr},
            {"params": heads, "lr": config.lr * config.head_lr_multiplier},
        ],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.momentum:
        for parameter in (*encoder, *heads):
            # torch would leave the buffers unset if the very first step were skipped
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_schedule(optimizer: Optimizer, config: OptimConfig) -> LRScheduler:
    """Return the polynomial decay to zero over the whole run."""
    return PolynomialLR(optimizer, total_iters=config.iterations, power=config.poly_power)
