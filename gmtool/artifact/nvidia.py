"""Detect the GPU and load TensorRT or TensorRT-RTX."""

from __future__ import annotations

import ctypes
import gc
import importlib
import platform
import sys
import threading
from contextlib import ContextDecorator
from functools import cache
from traceback import clear_frames
from types import ModuleType, TracebackType
from typing import Any

from gmtool.artifact.tensorrt_plan import FLAVOUR_TITLES, Flavour, Gpu, Host, release
from gmtool.errors import BackendError, BackendMemoryError, MissingExtraError, needs_extra

EXTRAS: dict[Flavour, str] = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx"}
OLDEST: dict[Flavour, str] = {"tensorrt": "10.3", "tensorrt_rtx": "1.2"}
"""Oldest supported release of each flavour."""


def load_driver() -> ctypes.CDLL | None:
    """Return the library of NVIDIA's driver; None without a driver."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def read_gpu(flavour: Flavour = "tensorrt") -> Gpu:
    """Return the first GPU of CUDA.

    Args:
        flavour: Its extra, which installs cuda-bindings, is named in the error.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        BackendError: No driver, no GPU, or a driver that is too old.
    """
    with needs_extra(EXTRAS[flavour], "TensorRT"):
        from cuda.bindings import runtime

    (driver,) = cuda_result(runtime.cudaDriverGetVersion())
    if driver == 0:
        raise BackendError("no NVIDIA driver on this machine; TensorRT needs an NVIDIA GPU")
    (device,) = cuda_result(runtime.cudaGetDevice())
    (properties,) = cuda_result(runtime.cudaGetDeviceProperties(device))
    return Gpu(
        name=properties.name.decode("utf-8", "replace").rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        memory_bytes=properties.totalGlobalMem,
    )


def has_gpu() -> bool:
    """Return whether NVIDIA's driver finds a GPU; needs no package."""
    try:
        cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


def cuda_result(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the results of a cuda-bindings call without its status.

    Raises:
        BackendMemoryError: The device has not enough memory.
        BackendError: The status is not success.
    """
    from cuda.bindings import runtime

    status, *values = answer
    if status != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(status)
        hint, kind = "", BackendError
        if status == runtime.cudaError_t.cudaErrorInsufficientDriver:
            hint = ": update the NVIDIA driver, or install the cuda-bindings of its CUDA version"
        elif status == runtime.cudaError_t.cudaErrorMemoryAllocation:
            hint, kind = ": take smaller images or smaller batches", BackendMemoryError
        raise kind(f"CUDA: {text.decode()}{hint}")
    return tuple(values)


@cache
def load_tensorrt(flavour: Flavour) -> ModuleType:
    """Import TensorRT.

    Raises:
        MissingExtraError: TensorRT is not installed.
        BackendError: Its libraries are missing, or it is too old.
    """
    title, extra = FLAVOUR_TITLES[flavour], EXTRAS[flavour]
    try:
        module = importlib.import_module(flavour)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f'this needs {title} ({error.name}), which is not installed: pip install "gmtool[{extra}]"'
        ) from error
    except (ImportError, OSError) as error:  # OSError: from loading the libraries
        raise BackendError(
            f"{flavour} is installed without its libraries ({error}): they come from NVIDIA's own package index; "
            f'on a machine that reaches it, pip install --force-reinstall "gmtool[{extra}]"'
        ) from error
    if not hasattr(module, "Builder"):
        raise BackendError(
            f'{flavour} is a placeholder package without TensorRT: pip install --force-reinstall "gmtool[{extra}]"'
        )
    if release(module.__version__) < release(OLDEST[flavour]):
        raise BackendError(
            f"{title} {module.__version__} is too old: expected {OLDEST[flavour]} or later: "
            f'pip install --upgrade "gmtool[{extra}]"'
        )
    return module


class CollectorHeldOff(ContextDecorator):
    """Pause Python's garbage collector during calls into TensorRT, also from several threads.

    TensorRT calls its Python logger while it holds an internal lock. A collection at that moment may free a
    builder or engine in a reference cycle, whose destructor waits for the same lock: a deadlock. Tracebacks are
    often part of a cycle, so `@collector_held_off` also clears the frames of exceptions that leave the function.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._was_on = False

    def __enter__(self) -> None:
        with self._lock:
            if self._calls == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._calls += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            clear_frames(traceback)
        with self._lock:
            self._calls -= 1
            if self._calls == 0 and self._was_on:
                gc.enable()


collector_held_off = CollectorHeldOff()


class TensorRTLog:
    """Logger of TensorRT that keeps the first error for messages.

    TensorRT keeps its first logger for the whole process, so there is one a flavour.
    """

    def __init__(self, trt: ModuleType) -> None:
        log = self

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                log._take(severity <= trt.ILogger.ERROR, severity.name, message)

        self.logger: Any = Logger()
        """Logger object for TensorRT's classes."""
        self.verbose = False
        """Whether all messages are printed on stderr."""
        self._errors: list[str] = []

    def start(self, *, verbose: bool = False) -> None:
        """Discard earlier errors before a new task."""
        self._errors.clear()
        self.verbose = verbose

    def reason(self) -> str:
        """Return the first error since `start` as one line."""
        return self._errors[0][:400] if self._errors else "no reason was given"

    def _take(self, is_error: bool, severity: str, message: str) -> None:
        line = " ".join(message.split())
        if is_error:
            self._errors.append(line)
        if self.verbose:
            from gmtool.console import remark

            remark(f"[{severity.lower()}] {line}")


@cache
def tensorrt_log(flavour: Flavour) -> TensorRTLog:
    """Return the one logger of a flavour."""
    return TensorRTLog(load_tensorrt(flavour))


def this_platform() -> str:
    """Return operating system and processor, such as "linux-x86_64" or "windows-amd64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def this_host(flavour: Flavour) -> Host:
    """Return TensorRT version, platform and GPU of this machine.

    Raises:
        MissingExtraError: TensorRT or cuda-bindings is not installed.
        BackendError: No driver, no GPU, or TensorRT without its libraries.
    """
    return Host(version=load_tensorrt(flavour).__version__, platform=this_platform(), gpu=read_gpu(flavour))
