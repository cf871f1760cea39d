"""Compare an exported model with PyTorch's masks on a machine without gmtool.

    python THIS_FILE MODEL.onnx [--provider CUDAExecutionProvider]
    python THIS_FILE MODEL.plan

Needs numpy, and onnxruntime for .onnx or tensorrt (with CUDA's runtime library) for .plan. Exit code 0 if enough
pixels have PyTorch's label at every shape, else 1. `gmtool verify MODEL --script FILE` writes this file with the
images and masks in it.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

DATA = ""
"""Base64 of an npz archive: `header` (JSON), `images_I` (N, H, W, 3), `mask_I` (N, H, W), `logits_I`."""

if TYPE_CHECKING:
    from collections.abc import Callable

    Runner = Callable[[Any], dict[str, Any]]


def open_onnx(path: Path, provider: str) -> tuple[str, Runner]:
    """Return the runtime's name and a function from images to outputs by name."""
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        sys.exit(f"error: onnxruntime {ort.__version__} has no {provider}; it has {ort.get_available_providers()}")
    session = ort.InferenceSession(str(path), providers=[provider])
    if session.get_providers()[0] != provider:
        sys.exit(f"error: onnxruntime fell back from {provider} to {session.get_providers()[0]}")
    names = [output.name for output in session.get_outputs()]

    def run(images: Any) -> dict[str, Any]:
        values = session.run(names, {session.get_inputs()[0].name: images})
        return {name: values[index] for index, name in enumerate(names)}

    return f"onnxruntime {ort.__version__} {provider}", run


def open_plan(path: Path) -> tuple[str, Runner]:
    """Return TensorRT's name and a function from images to outputs by name; memory is copied by CUDA's runtime."""
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_rtx as trt
    cuda = _cuda()
    log = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(log).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        sys.exit(f"error: TensorRT {trt.__version__} refuses {path}: build it on this machine")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]

    def run(images: Any) -> dict[str, Any]:
        if not context.set_input_shape(inputs[0], images.shape):
            sys.exit(f"error: the plan does not take images of shape {images.shape}")
        arrays = {inputs[0]: np.ascontiguousarray(images)}
        for name in names:
            if name not in inputs:
                kind = trt.nptype(engine.get_tensor_dtype(name))
                arrays[name] = np.empty(tuple(context.get_tensor_shape(name)), dtype=kind)
        memory = {name: cuda.upload(array) for name, array in arrays.items()}
        for name, pointer in memory.items():
            context.set_tensor_address(name, pointer.value)
        if not context.execute_async_v3(0):
            sys.exit("error: TensorRT failed")
        for name, pointer in memory.items():
            cuda.download(arrays[name], pointer)
        return {name: arrays[name] for name in names if name not in inputs}

    return f"tensorrt {trt.__version__}", run


class _Cuda:
    """Copies between host and device through CUDA's runtime library."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def upload(self, array: Any) -> ctypes.c_void_p:
        pointer = ctypes.c_void_p()
        self._check(self._library.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(array.nbytes)))
        self._copy(pointer, ctypes.c_void_p(array.ctypes.data), array.nbytes, 1)
        return pointer

    def download(self, array: Any, pointer: ctypes.c_void_p) -> None:
        self._copy(ctypes.c_void_p(array.ctypes.data), pointer, array.nbytes, 2)  # waits for the device
        self._check(self._library.cudaFree(pointer))

    def _copy(self, to: ctypes.c_void_p, source: ctypes.c_void_p, count: int, kind: int) -> None:
        self._check(self._library.cudaMemcpy(to, source, ctypes.c_size_t(count), kind))

    def _check(self, code: int) -> None:
        if code:
            sys.exit(f"error: CUDA error {code}")


def _cuda() -> _Cuda:
    for name in ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "cudart64_12.dll"):
        try:
            return _Cuda(ctypes.CDLL(name))
        except OSError:
            continue
    sys.exit("error: CUDA's runtime library (libcudart) is not found: set LD_LIBRARY_PATH")


def compare(run: Runner, arrays: Any, header: dict[str, Any]) -> list[str]:
    """Print the share of equal pixels of every shape; return the sizes that do not pass."""
    failed = []
    for index, shape in enumerate(header["shapes"]):
        images, expected = arrays[f"images_{index}"], arrays[f"mask_{index}"]
        size = "x".join(map(str, expected.shape))
        outputs = run(images)
        mask = outputs["mask"] if "mask" in outputs else outputs["logits"].argmax(axis=1)
        if mask.shape != expected.shape:
            sys.exit(f"error: the model gives masks {mask.shape}; expected {expected.shape}")
        equal = float((mask == expected).mean())
        passes = equal >= shape["required"]
        verdict = "" if passes else "  FAILED"
        sys.stdout.write(f"{size:<14} {equal:9.4%} equal, {shape['required']:.2%} required{verdict}\n")
        if not passes:
            failed.append(size)
    return failed


def main() -> None:
    """Verify the model of the command line."""
    parser = argparse.ArgumentParser(description="Compare an exported model with PyTorch's masks.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--provider", default="CPUExecutionProvider", help="execution provider of onnxruntime")
    given = parser.parse_args()
    if not given.model.is_file():
        sys.exit(f"error: {given.model}: no such file")
    # Images and PyTorch's masks
    with np.load(io.BytesIO(base64.b64decode(DATA)), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(arrays["header"].tobytes())
    if hashlib.sha256(given.model.read_bytes()).hexdigest() != header["model_sha256"]:
        sys.stderr.write(f"{given.model} is not the file {header['model']} that was exported\n")
    # The model
    is_plan = given.model.suffix in (".plan", ".engine", ".trt")
    title, run = open_plan(given.model) if is_plan else open_onnx(given.model, given.provider)
    failed = compare(run, arrays, header)
    if failed:
        sys.exit(f"error: {given.model} does not compute here what PyTorch computed, in {title}")
    sys.stdout.write(f"{given.model} computes here what PyTorch computed, in {title}\n")


if __name__ == "__main__":
    main()
