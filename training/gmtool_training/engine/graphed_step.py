"""Steps as a CUDA graph: captured once, then started by one call instead of thousands of kernels.

A step of the paper's recipe starts more than four thousand kernels; on a fast card the host takes longer to start
them than the card to compute them. All that differs between steps is copied into tensors that the graph reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from gmtool.config import MethodConfig, TrainConfig
from gmtool.console import remark
from gmtool.errors import BackendError
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.engine.machine import Machine
from gmtool_training.method.draws import Number
from gmtool_training.method.losses import StepLosses
from gmtool_training.method.step import Backward, Step, StepInput

WARM_STEPS = 3
"""Steps of one kind and size before the capture: libraries choose their kernels and take their memory in them. The
last of them may not wait for the card: a capture that fails leaves torch unable to draw for dropout."""
ROOM = 1.5
"""Memory that must be free for a capture, over what the steps before it took."""

P = ParamSpec("P")
T = TypeVar("T")

Capture = Callable[[Callable[[], StepLosses]], tuple[StepLosses, Callable[[], None]]]
"""Captures a computation without running it; returns its result, which every replay computes, and the replay."""


class NoRoomError(RuntimeError):
    """A capture was not begun for want of memory, so that torch can still draw for dropout."""


def can_graph(config: TrainConfig, machine: Machine) -> bool:
    """Return whether the steps of a run can be captured: on one card, whole, in torch's own kernels."""
    return (
        config.run.cuda_graph
        and machine.device.type == "cuda"
        and machine.processes == 1
        and config.optim.accumulation == 1
        and not (config.run.compile or config.run.activation_checkpointing or config.data.kept_crops)
    )


@dataclass(frozen=True)
class _Captured:
    """A captured step, and the tensors that it reads and writes."""

    inputs: StepInput
    losses: StepLosses
    gradients: list[tuple[nn.Parameter, Tensor]]
    replay: Callable[[], None]


class GraphedStep:
    """Step that is captured after a few steps of one size, and replayed from then on.

    Args:
        step: Step that computes nothing that depends on `StepInput.random` but through `StepInput.drawn`.
        method: Says what is drawn.
        capture: Captures a computation; by default as a CUDA graph.
    """

    def __init__(self, step: Step, method: MethodConfig, *, capture: Capture | None = None) -> None:
        self._step, self._method = step, method
        self._capture = capture or _capture_on_card
        self._captured: _Captured | None = None
        self._size: object = None
        self._steps = 0
        """Steps of this size so far."""
        self._gave_up = False
        self._stream: torch.cuda.Stream | None = None
        """That of the steps before a capture."""

    @property
    def is_captured(self) -> bool:
        """Whether the next step of the same size is replayed."""
        return self._captured is not None

    def __call__(self, network: nn.Module, inputs: StepInput, backward: Backward) -> StepLosses:
        """Compute the losses of a step and propagate them, as the step itself does.

        The next step overwrites the losses and the gradients.
        """
        # Draw what the step draws; another size, or the first unlabeled images, start anew
        if inputs.unlabeled is not None:
            inputs = replace(inputs, drawn=inputs.draws(self._method))
        size = [
            (value.shape, value.stride(), value.dtype) for value in _values(inputs) if isinstance(value, Tensor)
        ]
        if size != self._size:
            self._size, self._steps, self._captured = size, 0, None
        # Compute kernel by kernel, or capture
        if self._captured is None and not self._gave_up:
            self._steps += 1
            if self._steps < WARM_STEPS:
                return self._warm_up(network, inputs, backward)
            undo = _undo_step(network, inputs.labeled.images.device)
            try:
                if self._steps == WARM_STEPS:
                    with _refusing_waits(inputs.labeled.images.device):
                        return self._warm_up(network, inputs, backward)
                self._captured = self._capture_step(network, inputs, backward)
            except RuntimeError as error:
                # It waits, or memory does not suffice: what began is undone
                self._gave_up = True
                reason = str(error).splitlines()[0]
                began = self._steps > WARM_STEPS and not isinstance(error, NoRoomError)
                if began and any(isinstance(each, _DropoutNd) for each in network.modules()):
                    raise BackendError(
                        f"a step cannot be captured as a CUDA graph: {reason}: --set run.cuda_graph=false"
                    ) from error
                undo()
                remark(f"each kernel of a step is started by the host: no CUDA graph: {reason}")
        if self._captured is None:
            return self._step(network, inputs, backward)
        # Replay
        for target, value in zip(_values(self._captured.inputs), _values(inputs), strict=True):
            assert isinstance(target, Tensor)
            if isinstance(value, Tensor):
                target.copy_(value)
            else:
                target.fill_(value)
        self._captured.replay()
        for parameter, gradient in self._captured.gradients:
            parameter.grad = gradient
        return replace(self._captured.losses, omega=inputs.omega)

    def released_before(self, validate: Callable[P, T]) -> Callable[P, T]:
        """Return a function that gives up the graph, and the memory that only it can use, before it validates."""

        def released(*arguments: P.args, **keywords: P.kwargs) -> T:
            self._size, self._captured = None, None
            return validate(*arguments, **keywords)

        return released

    def _warm_up(self, network: nn.Module, inputs: StepInput, backward: Backward) -> StepLosses:
        """Compute a step in a stream of its own: a capture must find nothing of the default stream."""
        device = inputs.labeled.images.device
        if device.type != "cuda":
            return self._step(network, inputs, backward)
        if self._steps == 1:
            torch.cuda.reset_peak_memory_stats(device)
        stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream, default = stream, torch.cuda.current_stream(device)
        stream.wait_stream(default)
        try:
            with torch.cuda.stream(stream):
                return self._step(network, inputs, backward)
        finally:
            default.wait_stream(stream)

    def _capture_step(self, network: nn.Module, inputs: StepInput, backward: Backward) -> _Captured:
        """Capture a step without running it."""
        read = _with_own_tensors(inputs)
        network.zero_grad(set_to_none=True)
        losses, replay = self._capture(lambda: self._step(network, read, backward))
        gradients = [(each, each.grad) for each in network.parameters() if each.grad is not None]
        return _Captured(read, losses, gradients, replay)


def _capture_on_card(run: Callable[[], StepLosses]) -> tuple[StepLosses, Callable[[], None]]:
    """Capture a computation as a CUDA graph.

    Raises:
        NoRoomError: Memory does not suffice for the graph, which takes its own; nothing began.
        RuntimeError: It waits for the card.
    """
    used, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - used
    if ROOM * (most - used) > free:
        raise NoRoomError(f"it may take {int(ROOM * (most - used)) >> 20} MiB of memory, {free >> 20} are free")
    graph = torch.cuda.CUDAGraph()
    # Threads that pin batches may call CUDA meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        losses = run()
    return losses, graph.replay


@contextmanager
def _refusing_waits(device: torch.device) -> Iterator[None]:
    """Let torch raise where it would wait for the card."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _undo_step(network: nn.Module, device: torch.device) -> Callable[[], None]:
    """Return a function that undoes a step: gradients, running statistics, and the state of random numbers."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    random = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def undo() -> None:
        network.zero_grad(set_to_none=True)
        for buffer, value in buffers:
            buffer.copy_(value)
        if device.type == "cuda":
            torch.cuda.set_rng_state(random, device)
        else:
            torch.set_rng_state(random)

    return undo


def _values(inputs: StepInput) -> list[Number]:
    """Return all tensors and numbers of a step, in one order."""
    drawn = inputs.drawn
    values = [*inputs.labeled, inputs.unlabeled, inputs.inside, inputs.scored_pixels, inputs.omega]
    if drawn is not None:
        values += [drawn.lam, drawn.partners, drawn.boxes, drawn.colored, drawn.others]
    return [value for value in values if value is not None]


def _with_own_tensors(inputs: StepInput) -> StepInput:
    """Return a copy of a step's input whose tensors nothing else refers to, and with tensors for numbers."""
    device, drawn = inputs.labeled.images.device, inputs.drawn

    def own(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.clone()

    def tensor_of(value: Number) -> Tensor:
        # In float64, since Python's numbers are: 1 - lambda is rounded once
        return torch.as_tensor(value, dtype=torch.float64, device=device).clone()

    if drawn is not None:
        drawn = replace(
            drawn,
            lam=tensor_of(drawn.lam),
            partners=own(drawn.partners),
            boxes=own(drawn.boxes),
            colored=own(drawn.colored),
            others=own(drawn.others),
        )
    return replace(
        inputs,
        labeled=LabeledBatch(inputs.labeled.images.clone(), inputs.labeled.masks.clone()),
        unlabeled=own(inputs.unlabeled),
        inside=own(inputs.inside),
        scored_pixels=own(inputs.scored_pixels),
        omega=tensor_of(inputs.omega),
        drawn=drawn,
    )
