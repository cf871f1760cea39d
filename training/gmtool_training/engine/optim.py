"""Optimiser and learning rate schedule."""

from __future__ import annotations

import torch
from torch.optim import SGD, Optimizer

from gmtool.config import OptimConfig
from gmtool.nn.model import GuidedMixNet


def build_optimizer(network: GuidedMixNet, config: OptimConfig) -> Optimizer:
    """Return SGD with two parameter groups: encoder, and all other layers with a multiple of its learning rate.

    The group of a frozen encoder is empty. SGD is fused, to skip steps without waiting for the device; the network
    must be on its final device.
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
            # else unset if the first step is skipped
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rates(optimizer: Optimizer, config: OptimConfig, done: int) -> None:
    """Set the learning rates after `done` steps in place: lr (1 - done / iterations) ** poly_power.

    They depend on the steps done only, so a resumed run needs no state, and an extended run follows the polynomial
    of its new length.
    """
    rate = config.lr * max(0.0, 1 - done / config.iterations) ** config.poly_power
    encoder, heads = optimizer.param_groups
    encoder["lr"], heads["lr"] = rate, rate * config.head_lr_multiplier
