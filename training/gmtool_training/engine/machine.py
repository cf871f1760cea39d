"""Device, precision and processes of a run: autocast, loss scale, and sums over the processes of torchrun."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from gmtool.config import DeviceName, PrecisionName
from gmtool.console import remark
from gmtool.errors import BackendError, ConfigError
from gmtool.nn.model import Output

LONGEST_WAIT = timedelta(hours=4)
"""Timeout of processes waiting for each other: the first one may check a large data set."""
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""dtype of multiplications and convolutions in mixed precision; weights stay float32."""

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """Device, precision and place among the processes of a run."""

    device: torch.device
    precision: PrecisionName = "32-true"
    scaler: torch.amp.GradScaler | None = None
    """Loss scaler of 16-mixed, which is part of a run's state; else None."""
    rank: int = 0
    """Number of this process among those of the run, on all machines."""
    processes: int = 1
    local_rank: int = 0
    """Number of this process among those of the run on its machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of the run; others may be on machines that do not see them."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this process makes what all on its machine read: data that is generated or downloaded."""
        return self.local_rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which torch computes in the precision of the run."""
        half = HALF.get(self.precision)
        return nullcontext() if half is None else torch.autocast(self.device.type, dtype=half)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device; from pinned memory without waiting for it."""
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, times the loss scale in 16-mixed."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def update(self, optimizer: Optimizer) -> None:
        """Step the optimiser; in 16-mixed, unless gradients overflowed, and update the loss scale."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        if self.processes == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        return self.sum(tensor) / self.processes

    def broadcast(self, value: T) -> T:
        """Return the value that the first process has."""
        if self.processes == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def wait_for_all(self) -> None:
        """Wait until every process has come here."""
        if self.processes > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in the first process, then in the first ones of the other machines, then in the rest."""
        turn = 0 if self.is_first else 1 if self.is_first_here else 2
        for _ in range(turn):
            self.wait_for_all()
        yield
        for _ in range(2 - turn):
            self.wait_for_all()


class MixedPrecision(nn.Module):
    """A network whose forward pass runs under autocast, with float32 results."""

    def __init__(self, network: nn.Module, machine: Machine) -> None:
        super().__init__()
        self._network, self._machine = network, machine

    def forward(self, images: Tensor) -> Output:
        with self._machine.autocast():
            output: Output = self._network(images)
        return Output(*(part.float() for part in output))


def in_precision(network: nn.Module, machine: Machine) -> nn.Module:
    """Return a network that computes in the precision of the run: itself in 32-true."""
    return MixedPrecision(network, machine) if machine.precision in HALF else network


def of_first_process(read: Callable[[], T]) -> T:
    """Return what `read` returns in the first process, which alone calls it, before the device is known.

    Under `torchrun` this connects the processes; otherwise it is `read` itself.
    """
    rank, processes = _join_processes()
    if processes == 1:
        return read()
    values = [read() if rank == 0 else None]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return cast(T, values[0])


def open_machine(device: DeviceName, precision: PrecisionName) -> tuple[Machine, DeviceName, PrecisionName]:
    """Return the machine with its device and precision, where `auto` is replaced by what was found.

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
    precision = native_precision(found) if precision == "auto" else precision
    if precision == "16-mixed" and found == "mps":
        raise ConfigError(
            "run.precision=16-mixed needs a loss scaler, missing in torch on Apple GPUs: use 32-true"
        )
    # Processes of torchrun
    rank, processes = _join_processes()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(found, local_rank) if found == "cuda" else torch.device(found)
    if place.type == "cuda":
        torch.cuda.set_device(place)
        choose_kernels()
    scaler = torch.amp.GradScaler(found) if precision == "16-mixed" else None
    several = f", {processes} processes" if processes > 1 else ""
    remark(f"device {found}, precision {precision}{several}")
    return Machine(place, precision, scaler, rank, processes, local_rank), found, precision


def choose_kernels() -> None:
    """Set what torch may choose on a card, for the whole process.

    Float32 is float32, not TF32 with its mantissa of 10 bits, torch's default for convolutions. cuDNN takes
    algorithms by its heuristic: to try them for each new shape took seconds for every size of an image that the
    probe looks at, and steps of ResNet-50 were as often slower as faster (docs/gpu.md).
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def share_weights(machine: Machine, network: nn.Module) -> None:
    """Give every process the weights and statistics of the first one, in place."""
    if machine.processes > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, src=0)


def share_batch_statistics(machine: Machine, network: nn.Module) -> None:
    """Compute batch statistics over all processes (SyncBN), in place.

    torch supports it on GPUs only; on CPUs each process normalises by its own images.
    """
    if machine.processes == 1:
        return
    if machine.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    else:
        remark("batch normalisation: statistics of each process alone (SyncBN needs GPUs)")


def average_over_processes(machine: Machine, network: nn.Module) -> None:
    """Replace gradients and running statistics by their mean over the processes.

    Called once a step after the last backward pass. The hooks of torch's DistributedDataParallel would wait for
    parameters without gradient, since not every backward pass reaches every parameter.
    """
    if machine.processes == 1:
        return
    tensors = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    tensors += [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    flat = torch.cat([tensor.flatten().float() for tensor in tensors])
    averaged = machine.mean(flat)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, mean in zip(tensors, torch.split(averaged, sizes), strict=True):
        tensor.copy_(mean.view_as(tensor))


def _join_processes() -> tuple[int, int]:
    """Connect the processes that `torchrun` started; return the rank of this one, and their number."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return 0, 1
    if not dist.is_initialized():
        backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backends, timeout=LONGEST_WAIT)
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), processes


def _found_device(device: DeviceName) -> DeviceName:
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def native_precision(device: DeviceName) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """Return the half precision that the device multiplies natively, bfloat16 before float16; else 32-true."""
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        if capability >= (8, 0):
            return "bf16-mixed"
        return "16-mixed" if capability >= (7, 0) else "32-true"  # V100 and T4; before them half was no faster
    if device == "mps":
        return "32-true"
    # Private function, so it may be missing; then use 32-true
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if has_bf16() else "32-true"
