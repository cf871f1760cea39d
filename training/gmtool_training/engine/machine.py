"""What a run computes on: the device, the precision, and the processes that share a step."""

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
"""How long processes wait for each other: the first one may have a large data set to check."""


def build_fabric(device: DeviceName, precision: PrecisionName) -> tuple[Fabric, DeviceName, PrecisionName]:
    """Return Fabric on the asked device, and what `auto` came to.

    Under `torchrun` there is one process a device, on one machine or several; otherwise there is one process.

    Raises:
        BackendError: The device is not there.
        ConfigError: The device has no such precision.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch sees no CUDA device here: take --device cpu, or auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise BackendError("--device mps: torch sees no Apple GPU here: take --device cpu, or auto")
    found = _found_device(device)
    precision = _native_precision(found) if precision == "auto" else precision
    if precision == "16-mixed" and found == "mps":
        raise ConfigError("run.precision=16-mixed needs a loss scale, which torch has not for Apple GPUs: 32-true")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # says what the next line says
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=found,
        strategy=DDPStrategy(timeout=LONGEST_WAIT) if processes > 1 else "auto",
        devices=local,
        num_nodes=processes // local,
        # Given as a plugin, because Fabric by itself replaces 16-mixed on a processor by bf16-mixed
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
    """Return what scales the loss in `16-mixed`; its scale is part of a run's state."""
    plugin = fabric.strategy.precision
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def share_batch_statistics(fabric: Fabric, network: nn.Module) -> None:
    """Let batch normalisation take its statistics over all processes, in place.

    torch has this for GPUs alone; on processors each process normalises by its own part of the batch.
    """
    if fabric.world_size == 1:
        return
    if fabric.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    else:
        remark("batch normalisation: each process by its own images (torch shares statistics on GPUs alone)")


def average_over_processes(fabric: Fabric, network: nn.Module) -> None:
    """Replace every gradient and every running statistic by its mean over the processes.

    Once a step, after the last of its backward passes, which do not all reach every parameter: DDP's own
    hooks would wait for those that get no gradient in one of them.
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
    # Not public, so it may be missing; then 32-bit is the safe answer
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if has_bf16() else "32-true"
