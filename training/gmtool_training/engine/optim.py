"""Optimiser and learning rate schedule."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from gmtool.config import OptimConfig
from gmtool.nn.model import GuidedMixNet

SAVED_NAMES = {"momentum_buffer": "momentum"}
"""Names in a checkpoint of torch's own names, where they differ."""
STATE_NAMES = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")
"""torch's names of the state of a parameter."""


def build_optimizer(network: GuidedMixNet, config: OptimConfig) -> Optimizer:
    """Return the optimiser with two groups: encoder, and all other layers with a multiple of its learning rate.

    The group of a frozen encoder is empty. The optimiser is fused, to skip steps without waiting for the device;
    the network must be on its final device.
    """
    encoder = [parameter for parameter in network.encoder.parameters() if parameter.requires_grad]
    known = {id(parameter) for parameter in network.encoder.parameters()}
    heads = [parameter for parameter in network.parameters() if id(parameter) not in known]
    groups = [
        {"params": encoder, "lr": config.lr},
        {"params": heads, "lr": config.lr * config.head_lr_multiplier},
    ]
    if config.name == "adamw":
        return AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)
    if config.momentum:
        for parameter in (*encoder, *heads):
            # else unset if the first step is skipped
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the state of all parameters for a checkpoint: "momentum.0" of the first one with SGD, "exp_avg.0",
    "exp_avg_sq.0" and "step.0" with AdamW.
    """
    return {
        f"{SAVED_NAMES.get(name, name)}.{index}": tensor
        for index, values in optimizer.state_dict()["state"].items()
        for name, tensor in values.items()
        if tensor is not None
    }


def restore_state(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state that `state_tensors` returned; other tensors are passed over."""
    names = {saved: name for name, saved in SAVED_NAMES.items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        saved, _, index = key.rpartition(".")
        name = names.get(saved, saved)
        if name not in STATE_NAMES or not index.isdecimal():
            continue
        parameter = parameters[int(index)]
        # In the memory format of the parameter, which a fused optimiser needs; a counter of steps has none
        like = parameter if tensor.shape == parameter.shape else torch.empty((), device=parameter.device)
        optimizer.state[parameter][name] = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def set_learning_rates(optimizer: Optimizer, config: OptimConfig, done: int) -> None:
    """Set the learning rates after `done` steps in place: lr (1 - done / iterations) ** poly_power.

    They depend on the steps done only, so a resumed run needs no state, and an extended run follows the polynomial
    of its new length.
    """
    rate = config.lr * max(0.0, 1 - done / config.iterations) ** config.poly_power
    encoder, heads = optimizer.param_groups
    encoder["lr"], heads["lr"] = rate, rate * config.head_lr_multiplier
