"""A TensorRT engine on the GPU: named tensors in, named tensors out, on a stream of its own."""

from __future__ import annotations

import contextlib
import threading
import weakref
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime

from gmtool.artifact.nvidia import TensorRTLog, collector_held_off, cuda_result
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.errors import BackendError
from gmtool.images import UInt8Array
from gmtool_serving.backends.cuda_memory import TensorMemory

LAST_BATCH_S = 2.0
"""How long the end of a process waits for a batch that is computed."""


@dataclass
class GpuObjects:
    """What an engine holds on the GPU beside its tensors."""

    engine: Any
    context: Any
    stream: Any


class TrtEngine:
    """A deserialised engine with its context, its stream and its memory.

    Args:
        trt: The module of the engine's flavour.
        engine: An `ICudaEngine` with one input, images (N, H, W, 3) uint8, and at least one output.
        log: The logger that the engine was made with.

    Raises:
        BackendError: Not enough GPU memory.
    """

    def __init__(self, trt: ModuleType, engine: Any, log: TensorRTLog) -> None:
        self._trt, self._log = trt, log
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self.profiles = [
            _profile(engine.get_tensor_profile_shape(self.inputs[0], index))
            for index in range(engine.num_optimization_profiles)
        ]
        context = engine.create_execution_context()
        if context is None:
            raise BackendError(f"the plan's working memory does not fit on the GPU: {log.reason()}")
        (stream,) = cuda_result(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self._memory = {name: TensorMemory() for name in names}
        self._profile = 0
        self._lock = threading.Lock()  # a context runs one batch at a time
        self._gpu = GpuObjects(engine, context, stream)
        self._free = weakref.finalize(self, _release, self._gpu, list(self._memory.values()), self._lock)

    def run(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return every output by name for images (N, H, W, 3) uint8 that lie in one of the profiles.

        Raises:
            BackendError: Outside of every profile, not enough memory, or TensorRT failed.
        """
        index = pick_profile(self.profiles, BatchShape(*images.shape[:3]))
        with self._lock, collector_held_off:
            self._log.start()
            self._switch_profile(index)
            (name,) = self.inputs
            self._must(self._gpu.context.set_input_shape(name, images.shape), f"refuses the shape {images.shape}")
            memory = self._memory[name]
            memory.reserve(images.nbytes)
            memory.view(images.shape, np.uint8)[...] = images
            self._must(self._gpu.context.set_tensor_address(name, memory.device), f"refuses the address of {name}")
            shapes = {output: self._prepare_output(output) for output in self.outputs}
            memory.upload(images.nbytes, self._gpu.stream)
            self._must(self._gpu.context.execute_async_v3(int(self._gpu.stream)), "failed")
            for output in self.outputs:
                self._memory[output].download(_size(shapes[output], self._dtype(output)), self._gpu.stream)
            cuda_result(runtime.cudaStreamSynchronize(self._gpu.stream))
            # Copied: the next batch writes into the same memory
            return {
                output: self._memory[output].view(shapes[output], self._dtype(output)).copy() for output in shapes
            }

    def close(self) -> None:
        """Give the GPU memory back; the engine is of no use afterwards."""
        self._free()

    def _switch_profile(self, index: int) -> None:
        if index == self._profile:
            return
        switched = self._gpu.context.set_optimization_profile_async(index, int(self._gpu.stream))
        self._must(switched, f"refuses its profile {index}")
        cuda_result(runtime.cudaStreamSynchronize(self._gpu.stream))
        self._profile = index

    def _prepare_output(self, name: str) -> tuple[int, ...]:
        """Give an output its memory; return its shape, which the input's decides."""
        shape = tuple(self._gpu.context.get_tensor_shape(name))
        self._memory[name].reserve(_size(shape, self._dtype(name)))
        accepted = self._gpu.context.set_tensor_address(name, self._memory[name].device)
        self._must(accepted, f"refuses the address of {name}")
        return shape

    def _dtype(self, name: str) -> npt.DTypeLike:
        dtype: npt.DTypeLike = self._trt.nptype(self._gpu.engine.get_tensor_dtype(name))
        return dtype

    def _must(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise BackendError(f"TensorRT {what}: {self._log.reason()}")


def pick_profile(profiles: list[ShapeProfile], shape: BatchShape) -> int:
    """Return the profile that takes `shape` and is fastest nearest to it.

    Raises:
        BackendError: None takes it; the message says which side is outside of which range.
    """
    reasons = [profile.misfit(shape) for profile in profiles]
    fitting = [index for index, reason in enumerate(reasons) if reason is None]
    if not fitting:
        outside = "; or ".join(filter(None, reasons))
        raise BackendError(
            f"{shape} (batch x height x width) does not fit the plan: {outside}: resize the images, or build the "
            "plan with other --min-shape and --max-shape"
        )
    return min(fitting, key=lambda index: abs(profiles[index].opt.pixels - shape.pixels))


def _profile(dims: list[Any]) -> ShapeProfile:
    return ShapeProfile(*(BatchShape(*tuple(shape)[:3]) for shape in dims))


def _size(shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def _release(gpu: GpuObjects, memories: list[TensorMemory], lock: threading.Lock) -> None:
    """Release everything, in this order, when an engine is closed, dropped, or still there as Python ends."""
    if not lock.acquire(timeout=LAST_BATCH_S):
        return  # the process ends in the middle of a batch: nothing is taken away from under it
    with collector_held_off:
        gpu.context = None
        gpu.engine = None
        for memory in memories:
            memory.free()
        with contextlib.suppress(BackendError):  # the driver may be gone already at the end of the process
            cuda_result(runtime.cudaStreamDestroy(gpu.stream))
    lock.release()
