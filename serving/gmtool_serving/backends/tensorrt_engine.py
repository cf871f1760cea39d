"""TensorRT engine on the GPU, with two lanes of memory and CUDA stream."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime

from gmtool.artifact.nvidia import TensorRTLog, collector_held_off, cuda_result
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.errors import BackendError, BackendMemoryError
from gmtool.images import UInt8Array
from gmtool_serving.backends.cuda_memory import ScratchMemory, TensorMemory

Layout = tuple[tuple[int, ...], npt.DTypeLike]
"""Shape and dtype of a tensor."""
LAST_BATCH_S = 2.0
"""Seconds that the end of the process waits for a running batch."""


LANES = 2
"""Batches at once: one is copied while another is computed."""


class Lane:
    """Memory of a batch's tensors, and the stream on which it is copied and computed.

    Args:
        names: Names of the tensors.

    Raises:
        BackendError: CUDA makes no stream.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.memory = {name: TensorMemory() for name in names}
        (self.stream,) = cuda_result(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))

    def wait(self) -> None:
        """Wait until the copies and computations of the stream are done."""
        cuda_result(runtime.cudaStreamSynchronize(self.stream))

    def free_memory(self) -> None:
        """Free the memory of the tensors; it grows again with the next batch."""
        for memory in self.memory.values():
            memory.free()

    def free(self) -> None:
        """Free memory and stream."""
        self.free_memory()
        with contextlib.suppress(BackendError):  # the driver may be unloaded at the end of the process
            cuda_result(runtime.cudaStreamDestroy(self.stream))


@dataclass
class GpuObjects:
    """Engine, execution context, and the cache of compiled kernels: GPU objects beside the lanes."""

    engine: Any
    context: Any
    kernels: Any | None
    """`IRuntimeCache` of TensorRT-RTX; None for TensorRT."""
    keep_kernels: Callable[[bytes], None]


def forget(_: bytes) -> None:
    """Keep no kernels."""


class TrtEngine:
    """Deserialised engine with an execution context, and two lanes of tensor memory and stream.

    Two threads may run a batch each: while one waits for the context, its images are copied to the GPU already. A
    single thread uses one lane, and the second one's memory is never allocated.

    The memory between input and outputs is allocated here, for the shapes that occur: a context of its own would
    take that of the profile's largest shape.

    Args:
        trt: Python module of the engine's flavour.
        engine: An `ICudaEngine` with one input, images (N, H, W, 3) uint8, and at least one output.
        log: Logger that the engine was created with.
        kernels: Kernels that TensorRT-RTX compiled in an earlier process; empty for none.
        keep_kernels: Gets the kernels when the engine is released, if there are others than before.

    Raises:
        BackendError: Not enough GPU memory.
    """

    def __init__(
        self,
        trt: ModuleType,
        engine: Any,
        log: TensorRTLog,
        *,
        kernels: bytes = b"",
        keep_kernels: Callable[[bytes], None] = forget,
    ) -> None:
        self._trt, self._log, self.lanes = trt, log, LANES
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self.profiles = [
            _profile(engine.get_tensor_profile_shape(self.inputs[0], index))
            for index in range(engine.num_optimization_profiles)
        ]
        # Streams first: kernels are only loaded where a CUDA context exists
        lanes: list[Lane] = []
        try:
            for _ in range(LANES):
                lanes.append(Lane(names))
            context, cache = _context(trt, engine, kernels)
            if context is None:
                raise BackendError(f"not enough GPU memory for the plan: {log.reason()}")
        except BaseException:
            for lane in lanes:
                lane.free()
            raise
        # The last one first, whose memory is there; None once they are freed
        self._free_lanes: queue.LifoQueue[Lane | None] = queue.LifoQueue()
        for lane in lanes:
            self._free_lanes.put(lane)
        self._scratch = ScratchMemory()
        self._profile = 0
        self._prepared: BatchShape | None = None
        """Shape that the scratch memory was last set for."""
        self._lock = threading.Lock()  # an execution context runs one batch at a time
        self._alone = threading.Lock()  # one thread at a time takes all lanes
        self._gpu = GpuObjects(engine, context, cache, keep_kernels)
        self._free = weakref.finalize(self, _release, self._gpu, self._free_lanes, self._scratch, kernels)

    def run(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return all outputs by name for images, (N, H, W, 3) uint8, whose shape is in one of the profiles.

        A batch that does not fit beside another one is computed alone, with the memory of the other lanes freed.

        Raises:
            BackendError: Shape outside of every profile, not enough memory, TensorRT failed, or closed.
        """
        index = pick_profile(self.profiles, BatchShape(*images.shape[:3]))
        lane = self._take_lane()
        try:
            return self._run_in(lane, images, index)
        except BackendMemoryError:
            pass  # perhaps another lane has the memory
        finally:
            self._free_lanes.put(lane)
        with self._alone:  # holding no lane, or two threads would wait for each other's
            lanes: list[Lane] = []
            try:
                for _ in range(LANES):
                    lanes.append(self._take_lane())
                for lane in lanes:
                    lane.free_memory()
                self._scratch.free()  # that of a larger batch, perhaps
                self._prepared = None
                return self._run_in(lanes[0], images, index)
            finally:
                for lane in reversed(lanes):
                    self._free_lanes.put(lane)

    def _take_lane(self) -> Lane:
        lane = self._free_lanes.get()
        if lane is None:
            self._free_lanes.put(None)  # for the next one who asks
            raise BackendError("the plan is closed")
        return lane

    def _run_in(self, lane: Lane, images: UInt8Array, index: int) -> dict[str, npt.NDArray[Any]]:
        # Upload, while another batch may be computed
        (name,) = self.inputs
        memory = lane.memory[name]
        memory.reserve(images.nbytes)
        memory.view(images.shape, np.uint8)[...] = images
        memory.upload(images.nbytes, lane.stream)
        lane.wait()
        with self._lock, collector_held_off:
            outputs = self._compute(lane, images.shape, index)
        # Download, while the next one may be computed
        for output, (shape, dtype) in outputs.items():
            lane.memory[output].download(_size(shape, dtype), lane.stream)
        lane.wait()
        # Copied: the next batch writes into the same memory
        return {
            output: lane.memory[output].view(shape, dtype).copy() for output, (shape, dtype) in outputs.items()
        }

    def close(self) -> None:
        """Free the GPU memory; the engine cannot be used afterwards."""
        self._free()

    def _compute(self, lane: Lane, shape: tuple[int, ...], index: int) -> dict[str, Layout]:
        """Run the context on the images of a lane, and wait for it; return shape and dtype of the outputs."""
        self._log.start()
        self._switch_profile(index, lane)
        (name,) = self.inputs
        self._must(self._gpu.context.set_input_shape(name, shape), f"refuses the shape {shape}")
        self._give_scratch(BatchShape(*shape[:3]))
        address = lane.memory[name].device
        self._must(self._gpu.context.set_tensor_address(name, address), f"refuses the address of {name}")
        outputs = {output: self._prepare_output(output, lane) for output in self.outputs}
        self._must(self._gpu.context.execute_async_v3(int(lane.stream)), "failed")
        lane.wait()
        return outputs

    def _switch_profile(self, index: int, lane: Lane) -> None:
        if index == self._profile:
            return
        switched = self._gpu.context.set_optimization_profile_async(index, int(lane.stream))
        self._must(switched, f"refuses its profile {index}")
        lane.wait()
        self._profile, self._prepared = index, None

    def _give_scratch(self, shape: BatchShape) -> None:
        """Give the context the memory that it needs for the input's shape, which has been set."""
        if shape == self._prepared:
            return
        self._prepared = None
        needed = int(self._gpu.context.update_device_memory_size_for_shapes())
        self._scratch.reserve(needed)
        self._gpu.context.set_device_memory(self._scratch.device, self._scratch.capacity)
        self._prepared = shape

    def _prepare_output(self, name: str, lane: Lane) -> Layout:
        """Reserve the memory of an output; return its shape, which follows from the input's, and its dtype."""
        shape = tuple(self._gpu.context.get_tensor_shape(name))
        dtype: npt.DTypeLike = self._trt.nptype(self._gpu.engine.get_tensor_dtype(name))
        lane.memory[name].reserve(_size(shape, dtype))
        accepted = self._gpu.context.set_tensor_address(name, lane.memory[name].device)
        self._must(accepted, f"refuses the address of {name}")
        return shape, dtype

    def _must(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise BackendError(f"TensorRT {what}: {self._log.reason()}")


def _context(trt: ModuleType, engine: Any, kernels: bytes) -> tuple[Any | None, Any | None]:
    """Return an execution context without memory of its own, None on failure; and its cache of kernels."""
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    config: Any = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
    if not hasattr(config, "create_runtime_cache"):  # TensorRT: its kernels are in the plan
        return engine.create_execution_context(strategy), None
    config.set_execution_context_allocation_strategy(strategy)
    cache = config.create_runtime_cache()
    if kernels:
        cache.deserialize(kernels)  # those of another card or version are refused, and the cache stays empty
    config.set_runtime_cache(cache)
    return engine.create_execution_context(config), cache


def pick_profile(profiles: list[ShapeProfile], shape: BatchShape) -> int:
    """Return the index of the profile that accepts `shape` and has the nearest optimum.

    Raises:
        BackendError: None accepts it; the message names the sides outside of their ranges.
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


def _release(gpu: GpuObjects, lanes: queue.LifoQueue[Lane | None], scratch: ScratchMemory, kernels: bytes) -> None:
    """Release the GPU objects, in this order, when an engine is closed, garbage-collected or Python ends."""
    deadline = time.monotonic() + LAST_BATCH_S
    taken: list[Lane] = []
    try:
        while len(taken) < LANES:
            lane = lanes.get(timeout=max(0.0, deadline - time.monotonic()))
            if lane is not None:
                taken.append(lane)
    except queue.Empty:  # the process ends in the middle of a batch, whose memory must stay
        for lane in taken:
            lanes.put(lane)
        return
    lanes.put(None)
    with collector_held_off:
        serialized = None if gpu.kernels is None else gpu.kernels.serialize()
        now = b"" if serialized is None else bytes(serialized)
        gpu.context = None
        gpu.kernels = None
        gpu.engine = None
        scratch.free()
        for lane in taken:
            lane.free()
    if now not in (b"", kernels):
        gpu.keep_kernels(now)
