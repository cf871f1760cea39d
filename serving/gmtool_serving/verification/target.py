"""Compare an exported model with PyTorch's masks on a machine without gmtool.

    python THIS_FILE MODEL.onnx [--provider CUDAExecutionProvider]
    python THIS_FILE MODEL.plan

Needs numpy, and onnxruntime for .onnx, or tensorrt (.rtx.plan: tensorrt_rtx) and CUDA's runtime library, of the
system or of NVIDIA's Python packages. Exit code 0 if enough pixels have PyTorch's label at every shape, else 1.
`gmtool verify MODEL --script FILE` writes this file with the images and masks in it.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import hashlib
import importlib
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
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        sys.exit("error: an ONNX model needs onnxruntime: pip install onnxruntime")
    if provider not in ort.get_available_providers():
        sys.exit(f"error: onnxruntime {ort.__version__} has no {provider}; it has {ort.get_available_providers()}")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # int8 on x86 processors without VNNI
    session = ort.InferenceSession(str(path), options, providers=[provider])
    if session.get_providers()[0] != provider:
        sys.exit(f"error: onnxruntime fell back from {provider} to {session.get_providers()[0]}")
    names = [output.name for output in session.get_outputs()]

    def run(images: Any) -> dict[str, Any]:
        values = session.run(names, {session.get_inputs()[0].name: images})
        return {name: values[index] for index, name in enumerate(names)}

    return f"onnxruntime {ort.__version__} {provider}", run


def open_plan(path: Path, *, host_code: bool = False) -> tuple[str, Runner]:
    """Return TensorRT's name and a function from images to outputs by name; memory is copied by CUDA's runtime."""
    trt, cuda = _tensorrt(path), _cuda()
    engine = _engine(trt, path, host_code)
    context = engine.create_execution_context()
    if context is None:
        sys.exit(f"error: not enough GPU memory for {path}")
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    title = f"{trt.__name__} {trt.__version__}"

    def run(images: Any) -> dict[str, Any]:
        # Shapes of the outputs follow from that of the images
        low, _, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(inputs[0], 0))
        inside = all(low[index] <= size <= high[index] for index, size in enumerate(images.shape))
        if not inside or not context.set_input_shape(inputs[0], images.shape):
            sys.exit(
                f"error: {path} takes images from {low} to {high}; got {images.shape}: verify it with its own set"
            )
        arrays = {inputs[0]: np.ascontiguousarray(images)}
        for name in names:
            if name not in inputs:
                kind = trt.nptype(engine.get_tensor_dtype(name))
                arrays[name] = np.empty(tuple(context.get_tensor_shape(name)), dtype=kind)
        # Upload, execute on the default stream, download
        memory = {name: cuda.upload(array) for name, array in arrays.items()}
        for name, pointer in memory.items():
            if not context.set_tensor_address(name, pointer.value):
                sys.exit(f"error: {title} refuses the memory of {name}")
        if not context.execute_async_v3(0):
            sys.exit(f"error: {title} failed")
        for name, pointer in memory.items():
            cuda.download(arrays[name], pointer)
        return {name: arrays[name] for name in names if name not in inputs}

    return title, run


def _tensorrt(path: Path) -> Any:
    """Return the module that a plan was built for: TensorRT-RTX's are named `.rtx.plan`."""
    names = ["tensorrt_rtx"] if path.name.endswith(".rtx.plan") else ["tensorrt", "tensorrt_rtx"]
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    sys.exit(f"error: {path} needs {names[0]}: pip install {names[0].replace('_', '-')}")


def _engine(trt: Any, path: Path, host_code: bool) -> Any:
    title = f"{trt.__name__} {trt.__version__}"
    try:
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    except TypeError:  # the factory gave none
        sys.exit(f"error: {title} does not start: is there an NVIDIA GPU with a driver for it?")
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        sys.exit(f"error: {title} refuses {path}: build it on this machine")
    return engine


class _Cuda:
    """Copies between host and device through CUDA's runtime library."""

    def __init__(self, library: Any) -> None:
        self._library = library
        library.cudaMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
        library.cudaMemcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        library.cudaFree.argtypes = [ctypes.c_void_p]
        library.cudaGetErrorString.restype = ctypes.c_char_p
        count = ctypes.c_int()
        self._check(library.cudaGetDeviceCount(ctypes.byref(count)))

    def upload(self, array: Any) -> ctypes.c_void_p:
        pointer = ctypes.c_void_p()
        self._check(self._library.cudaMalloc(ctypes.byref(pointer), array.nbytes))
        self._check(self._library.cudaMemcpy(pointer, array.ctypes.data, array.nbytes, 1))
        return pointer

    def download(self, array: Any, pointer: ctypes.c_void_p) -> None:
        # Waits for the default stream
        self._check(self._library.cudaMemcpy(array.ctypes.data, pointer, array.nbytes, 2))
        self._check(self._library.cudaFree(pointer))

    def _check(self, code: int) -> None:
        if code:
            sys.exit(f"error: CUDA: {self._library.cudaGetErrorString(code).decode()}")


def _cuda() -> _Cuda:
    """Load CUDA's runtime: the system's, or that of NVIDIA's Python packages, which no loader looks into."""
    found = ["libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"]
    for folder in sys.path:
        for pattern in (
            "nvidia/*/lib/libcudart.so*",
            "nvidia/*/bin/cudart64_*.dll",
            "nvidia/*/bin/*/cudart64_*.dll",
        ):
            found += sorted(map(str, Path(folder).glob(pattern)))
    for name in [*found, "cudart64_13.dll", "cudart64_12.dll"]:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return _Cuda(library)
    sys.exit("error: libcudart of CUDA is not found: set LD_LIBRARY_PATH, or pip install nvidia-cuda-runtime")


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
    parser.add_argument(
        "--host-code", action="store_true", help="run the runtime that a version-compatible plan contains"
    )
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
    if is_plan:
        title, run = open_plan(given.model, host_code=given.host_code)
    else:
        title, run = open_onnx(given.model, given.provider)
    failed = compare(run, arrays, header)
    if failed:
        sys.exit(f"error: {given.model} does not compute here what PyTorch computed, in {title}")
    sys.stdout.write(f"{given.model} computes here what PyTorch computed, in {title}\n")


if __name__ == "__main__":
    main()
