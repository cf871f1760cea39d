"""The optimiser and its learning rate by step."""

from __future__ import annotations

import torch
from torch.optim import SGD, Optimizer

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


def set_learning_rates(optimizer: Optimizer, config: OptimConfig, done: int) -> None:
    """Set the rates of the step after `done` steps: lr (1 - done / iterations) ** poly_power, in place.

    A function of the steps done alone, so that a resumed run needs no state for it, and a run that is made
    longer follows the polynomial of its new length.
    """
    rate = config.lr * max(0.0, 1 - done / config.iterations) ** config.poly_power
    encoder, heads = optimizer.param_groups
    encoder["lr"], heads["lr"] = rate, rate * config.head_lr_multiplier
