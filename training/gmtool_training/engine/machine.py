"""Device, precision and processes of a run, through Lightning Fabric."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Literal, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

from gmtool.config import DeviceName, PrecisionName
from gmtool.console import remark
from gmtool.errors import BackendError, ConfigError

LONGEST_WAIT = timedelta(hours=4)
"""Timeout of processes waiting for each other: the first one may check a large data set."""


def build_fabric(device: DeviceName, precision: PrecisionName) -> tuple[Fabric, DeviceName, PrecisionName]:
    """Return Fabric on a device, with the device and precision that `auto` selects.

    Under `torchrun` one process a device, on one or several machines; otherwise one process.

    Raises:
        BackendError: Device unavailable.
        ConfigError: The device does not support the precision.
    """
    # Device and precision
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch finds no CUDA device: use --device cpu or auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise BackendError("--device mps: torch finds no Apple GPU: use --device cpu or auto")
    found = _found_device(device)
    precision = _native_precision(found) if precision == "auto" else precision
    if precision == "16-mixed" and found == "mps":
        raise ConfigError(
            "run.precision=16-mixed needs a loss scaler, missing in torch on Apple GPUs: use 32-true"
        )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # repeats the remark below
    # Processes of torchrun
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=found,
        strategy=DDPStrategy(timeout=LONGEST_WAIT) if processes > 1 else "auto",
        devices=local,
        num_nodes=processes // local,
        # As a plugin, since Fabric replaces 16-mixed on a CPU by bf16-mixed
        **(
            {"plugins": MixedPrecision("16-mixed", device=found)}
            if precision == "16-mixed"
            else {"precision": precision}
        ),
    )
    fabric.launch()
    several = f", {processes} processes" if processes > 1 else ""
    remark(f"device {found}, precision {precision}{several}")
    return fabric, found, precision


def loss_scaler(fabric: Fabric) -> torch.amp.GradScaler | None:
    """Return the loss scaler of `16-mixed`, which is part of a run's state; None for other precisions."""
    plugin = fabric.strategy.precision
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def share_batch_statistics(fabric: Fabric, network: nn.Module) -> None:
    """Compute batch statistics over all processes (SyncBN), in place.

    torch supports it on GPUs only; on CPUs each process normalises by its own images.
    """
    if fabric.world_size == 1:
        return
    if fabric.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    else:
        remark("batch normalisation: statistics of each process alone (SyncBN needs GPUs)")


def average_over_processes(fabric: Fabric, network: nn.Module) -> None:
    """Replace gradients and running statistics by their mean over the processes.

    Called once a step after the last backward pass. DDP's own hooks would wait for parameters without gradient,
    since not every backward pass reaches every parameter.
    """
    if fabric.world_size == 1:
        return
    tensors = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    tensors += [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    flat = torch.cat([tensor.flatten().float() for tensor in tensors])
    averaged = cast(torch.Tensor, fabric.all_reduce(flat, reduce_op="mean"))
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, mean in zip(tensors, torch.split(averaged, sizes), strict=True):
        tensor.copy_(mean.view_as(tensor))


def _found_device(device: DeviceName) -> DeviceName:
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _native_precision(device: DeviceName) -> Literal["32-true", "bf16-mixed"]:
    """Return bf16-mixed where the device multiplies bfloat16 natively, else 32-true."""
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if device == "mps":
        return "32-true"
    # Private function, so it may be missing; then use 32-true
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if has_bf16() else "32-true"
