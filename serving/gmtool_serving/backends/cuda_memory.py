"""Pinned host buffer and GPU buffer of a tensor, and GPU memory for what is between tensors."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime

from gmtool.artifact.nvidia import cuda_result

GRAIN_BYTES = 2 * 2**20
"""Sizes are multiples of this: pinning memory costs milliseconds, so buffers rarely grow."""


def grown_size(capacity: int, needed: int) -> int:
    """Return the new size, bytes, of a buffer of `capacity` bytes that must hold `needed`.

    Unchanged if it is large enough; else it grows by at least half, in multiples of `GRAIN_BYTES`.
    """
    if needed <= capacity:
        return capacity
    size = max(needed, capacity + capacity // 2)
    return -(-size // GRAIN_BYTES) * GRAIN_BYTES


class TensorMemory:
    """Host and GPU memory of one tensor. It grows and never shrinks; growing discards the content."""

    def __init__(self) -> None:
        self._host = self.device = self.capacity = 0

    def reserve(self, needed: int) -> None:
        """Grow to at least `needed` bytes.

        Raises:
            BackendError: Not enough memory, or no GPU.
        """
        size = grown_size(self.capacity, needed)
        if size == self.capacity:
            return
        self.free()
        (self._host,) = cuda_result(runtime.cudaMallocHost(size))
        (device,) = cuda_result(runtime.cudaMalloc(size))
        self.device, self.capacity = int(device), size

    def view(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the host buffer as an array, valid until the memory grows."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = (ctypes.c_uint8 * count).from_address(int(self._host))
        return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)

    def upload(self, count: int, stream: Any) -> None:
        """Start copying the first `count` bytes to the GPU."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        cuda_result(runtime.cudaMemcpyAsync(self.device, self._host, count, kind, stream))

    def download(self, count: int, stream: Any) -> None:
        """Start copying the first `count` bytes from the GPU."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        cuda_result(runtime.cudaMemcpyAsync(self._host, self.device, count, kind, stream))

    def free(self) -> None:
        """Free both buffers."""
        host, device = self._host, self.device
        self._host = self.device = self.capacity = 0
        if host:
            runtime.cudaFreeHost(host)
        if device:
            runtime.cudaFree(device)


class ScratchMemory:
    """GPU memory that a runtime computes in. It grows, to no more than is needed, and never shrinks."""

    def __init__(self) -> None:
        self.device = self.capacity = 0

    def reserve(self, needed: int) -> None:
        """Grow to at least `needed` bytes.

        Raises:
            BackendMemoryError: Not enough memory; the smaller one is given back.
        """
        if needed <= self.capacity:
            return
        self.free()
        size = -(-needed // GRAIN_BYTES) * GRAIN_BYTES
        (device,) = cuda_result(runtime.cudaMalloc(size))
        self.device, self.capacity = int(device), size

    def free(self) -> None:
        """Free it."""
        device, self.device, self.capacity = self.device, 0, 0
        if device:
            runtime.cudaFree(device)
