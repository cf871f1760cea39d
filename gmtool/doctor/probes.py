"""Probes, each in a process of its own: one may print, hang or crash. `python -m gmtool.doctor.probes NAME`.

Each probe prints what it found as one line of JSON, its last one.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, cast

from gmtool.artifact.nvidia import load_driver
from gmtool.artifact.tensorrt_plan import Flavour
from gmtool.errors import GmtoolError

TIMEOUT_S = 60
TINY_ONNX = base64.b64decode(
    "CAgSADp2Cg8KAXgKAXcSAWMiBENvbnYKEQoBYwoBYxIBeSIGTWF0TXVsEgFnKhMIAQgBCAEIARABIgQAAIC/QgF3WhsKAXgSFgoU"
    "CAESEAoCCAEKAggBCgIIAgoCCAJiGwoBeRIWChQIARIQCgIIAQoCCAEKAggCCgIIAkIECgAQEg=="
)
"""Convolution by -1, then the matrix product of the result with itself: float32 [1, 1, 2, 2], opset 18. On a GPU
the first needs cuDNN, the second cuBLAS."""
ORT = "onnxruntime:"
"""Before the name of a provider in the name of its probe."""


@dataclass(frozen=True)
class Probe:
    """Result of a probe."""

    value: dict[str, Any]
    """What it found; empty if it failed."""
    failure: str | None
    """Why it found nothing, in a line."""


def run_probe(name: str) -> Probe:
    """Run a probe in a process of its own."""
    command = [sys.executable, "-m", "gmtool.doctor.probes", name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return Probe({}, f"it did not answer within {TIMEOUT_S} s")
    if done.returncode < 0:
        return Probe({}, f"it crashed (signal {-done.returncode})")
    with contextlib.suppress(ValueError, IndexError):
        value = json.loads(done.stdout.splitlines()[-1])
        return Probe({**value, "stderr": _reason(done.stderr)}, None)
    return Probe({}, _reason(done.stderr) or f"it ended with exit code {done.returncode}")


def main(name: str) -> None:
    """Run a probe here and print what it found."""
    if name.startswith(ORT):
        value = _provider(name.removeprefix(ORT))
    elif name in ("tensorrt", "tensorrt_rtx"):
        value = _tensorrt(cast(Flavour, name))
    else:
        value = {"torch": _torch, "driver": _driver, "onnxruntime": _onnxruntime}[name]()
    sys.stdout.write("\n" + json.dumps(value) + "\n")


def _torch() -> dict[str, Any]:
    import torch

    value: dict[str, Any] = {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "mps": torch.backends.mps.is_available(),
        "devices": 0,
        "error": None,
    }
    try:
        if torch.cuda.is_available():
            value["devices"] = torch.cuda.device_count()
            torch.zeros(8, device="cuda").add(1).sum().item()  # finds a GPU that this build has no code for
            value["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    except RuntimeError as error:
        value["error"] = str(error).splitlines()[0]
    return value


def _onnxruntime() -> dict[str, Any]:
    import onnxruntime as ort
    from onnxruntime.capi import build_and_package_info

    return {
        "version": ort.__version__,
        "cuda": getattr(build_and_package_info, "cuda_version", None),
        "providers": ort.get_available_providers(),
    }


def _provider(name: str) -> dict[str, Any]:
    """Run a convolution and a matrix product on a provider of ONNX Runtime."""
    import numpy as np
    import onnxruntime as ort

    if name == "CUDAExecutionProvider":
        ort.preload_dlls()  # finds the CUDA libraries that pip installed
    session = ort.InferenceSession(TINY_ONNX, providers=[name])
    got = session.get_providers()[0]
    if got == name:
        (result,) = session.run(None, {"x": np.full((1, 1, 2, 2), -1, np.float32)})
        if result.tolist() != [[[[2.0, 2.0], [2.0, 2.0]]]]:
            got = f"{name}, which computes wrongly"
    return {"got": got}


def _driver() -> dict[str, Any]:
    """Ask NVIDIA's driver itself, with the functions that every version of it has."""
    cuda = load_driver()
    if cuda is None:
        return {"there": False}
    status = cuda.cuInit(0)
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = [_gpu(cuda, index) for index in range(count.value)] if status == 0 else []
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return {"there": True, "status": status, "cuda": cuda_version, "gpus": gpus, "release": _driver_release()}


def _gpu(cuda: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, major, minor, mode = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(mode), 20, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_MODE
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return {
        "name": name.value.decode("utf-8", "replace"),
        "compute_capability": f"{major.value}.{minor.value}",
        "memory_bytes": memory.value,
        "exclusive": mode.value != 0,  # one process at a time
    }


def _driver_release() -> str | None:
    """Return the driver's own version, which CUDA does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S / 2, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[0] if lines else None


def _tensorrt(flavour: Flavour) -> dict[str, Any]:
    """Load TensorRT and start its builder, which TensorRT proper does only where there is a GPU."""
    from gmtool.artifact.nvidia import load_tensorrt

    try:
        trt = load_tensorrt(flavour)
    except GmtoolError as error:
        return {"error": str(error)}
    try:
        builds = trt.Builder(trt.Logger(trt.Logger.ERROR)) is not None
    except Exception:  # pybind11 raises a TypeError, CUDA what it likes
        builds = False
    # Such as SM86; TensorRT proper has no such list
    gpus = [item[2:] for item in dir(getattr(trt, "ComputeCapability", None)) if item.startswith("SM")]
    known = [f"{item[:-1]}.{item[-1]}" for item in gpus]
    return {"version": str(trt.__version__), "builds": builds, "compute_capabilities": known, "error": None}


def _reason(stderr: str) -> str:
    """Return what went wrong as one line: what a loader missed, else the last line that was said."""
    missed = re.search(r"with error: (.*)", stderr)
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    text = missed.group(1) if missed else lines[-1] if lines else ""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)[:300]


if __name__ == "__main__":
    main(sys.argv[1])
