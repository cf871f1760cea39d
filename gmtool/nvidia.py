"""What of NVIDIA's is there to build or run a plan: the GPU, and TensorRT in either flavour."""

from __future__ import annotations

from types import ModuleType

from gmtool.plan import Flavour, Gpu, Host


def read_gpu() -> Gpu:
    """Return the GPU that CUDA would use.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        BackendError: No driver, no GPU, or a driver that is too old.
    """
    raise NotImplementedError


def load_tensorrt(flavour: Flavour) -> ModuleType:
    """Import TensorRT.

    Raises:
        MissingExtraError: It is not installed.
        BackendError: It is installed without its libraries, or is older than 10.12.
    """
    raise NotImplementedError


def this_platform() -> str:
    """Return operating system and processor, such as "linux-x86_64" or "windows-amd64"."""
    raise NotImplementedError


def this_host(flavour: Flavour) -> Host:
    """Return what a plan of a flavour would run on here.

    Raises:
        MissingExtraError: TensorRT or cuda-bindings is not installed.
        BackendError: No driver, no GPU, or TensorRT without its libraries.
    """
    raise NotImplementedError
