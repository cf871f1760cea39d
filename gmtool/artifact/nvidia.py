"""What of NVIDIA's is there to build or run a plan: the GPU, and TensorRT in either flavour."""

from __future__ import annotations

import gc
import importlib
import platform
import threading
from contextlib import ContextDecorator
from functools import cache
from traceback import clear_frames
from types import ModuleType, TracebackType
from typing import Any

from gmtool.artifact.tensorrt_plan import FLAVOUR_TITLES, Flavour, Gpu, Host, release
from gmtool.errors import BackendError, MissingExtraError, needs_extra

EXTRAS: dict[Flavour, str] = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx"}
OLDEST: dict[Flavour, str] = {"tensorrt": "10.12", "tensorrt_rtx": "1.2"}
"""Releases that build strongly typed networks as this program does."""


def read_gpu(flavour: Flavour = "tensorrt") -> Gpu:
    """Return the GPU that CUDA would use.

    Args:
        flavour: Whose extra brings cuda-bindings, for the message.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        BackendError: No driver, no GPU, or a driver that is too old.
    """
    with needs_extra(EXTRAS[flavour], "TensorRT"):
        from cuda.bindings import runtime

    (driver,) = cuda_result(runtime.cudaDriverGetVersion())
    if driver == 0:
        raise BackendError("there is no NVIDIA driver on this machine, and TensorRT runs on an NVIDIA GPU")
    (device,) = cuda_result(runtime.cudaGetDevice())
    (properties,) = cuda_result(runtime.cudaGetDeviceProperties(device))
    return Gpu(
        name=properties.name.decode("utf-8", "replace").rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        memory_bytes=properties.totalGlobalMem,
    )


def cuda_result(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what a call of cuda-bindings gave besides its status.

    Raises:
        BackendError: The status is not success.
    """
    from cuda.bindings import runtime

    status, *values = answer
    if status != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(status)
        hint = ""
        if status == runtime.cudaError_t.cudaErrorInsufficientDriver:
            hint = ": update the NVIDIA driver, or install the cuda-bindings of its CUDA version"
        elif status == runtime.cudaError_t.cudaErrorMemoryAllocation:
            hint = ": take smaller images or smaller batches"
        raise BackendError(f"CUDA: {text.decode()}{hint}")
    return tuple(values)


@cache
def load_tensorrt(flavour: Flavour) -> ModuleType:
    """Import TensorRT.

    Raises:
        MissingExtraError: It is not installed.
        BackendError: It is installed without its libraries, or is too old.
    """
    title, extra = FLAVOUR_TITLES[flavour], EXTRAS[flavour]
    try:
        module = importlib.import_module(flavour)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f'this needs {title} ({error.name}), which is not installed: pip install "gmtool[{extra}]"'
        ) from error
    except (ImportError, OSError) as error:  # OSError: the libraries' own loader
        raise BackendError(
            f"{flavour} is installed without its libraries ({error}): they come from NVIDIA's own package index; "
            f'on a machine that reaches it, pip install --force-reinstall "gmtool[{extra}]"'
        ) from error
    if not hasattr(module, "Builder"):
        raise BackendError(
            f'{flavour} is a stub here, without TensorRT in it: pip install --force-reinstall "gmtool[{extra}]"'
        )
    if release(module.__version__) < release(OLDEST[flavour]):
        raise BackendError(
            f"{title} {module.__version__} is too old: expected {OLDEST[flavour]} or later: "
            f'pip install --upgrade "gmtool[{extra}]"'
        )
    return module


class CollectorHeldOff(ContextDecorator):
    """Holds Python's garbage collector off during calls into TensorRT. Threads may be in there at the same time.

    TensorRT calls its logger, which is Python, while it holds a lock of its own. A collection at that moment can
    free a builder or an engine that waits in a reference cycle, whose destructor waits for that lock for ever.
    A traceback is often part of a cycle: around a function, `@collector_held_off` also empties the frames of an
    exception that leaves it, so that TensorRT's objects are released there and then.
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
    """What TensorRT says, kept for messages.

    TensorRT keeps the first logger that it was given for the life of the process: there is one a flavour.
    """

    def __init__(self, trt: ModuleType) -> None:
        log = self

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                log._take(severity <= trt.ILogger.ERROR, severity.name, message)

        self.logger: Any = Logger()
        """What TensorRT's classes take."""
        self.verbose = False
        """Pass everything on to the user, on stderr."""
        self._errors: list[str] = []

    def start(self, *, verbose: bool = False) -> None:
        """Forget earlier errors: what follows belongs to something new."""
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
    """Return what a plan of a flavour would run on here.

    Raises:
        MissingExtraError: TensorRT or cuda-bindings is not installed.
        BackendError: No driver, no GPU, or TensorRT without its libraries.
    """
    return Host(version=load_tensorrt(flavour).__version__, platform=this_platform(), gpu=read_gpu(flavour))
