"""ONNX Runtime backend, on CPU or CUDA."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_inference_collection as ort_sessions

from gmtool.artifact.nvidia import load_driver
from gmtool.artifact.spec import Precision
from gmtool.console import remark
from gmtool.errors import ArtifactError, BackendError, BackendMemoryError, ImageTooLargeError
from gmtool.images import UInt8Array
from gmtool.resources import EXACT_INT8, available_memory, physical_memory, runtime_threads
from gmtool_serving.backends.base import InferenceDevice, Prediction, fit_shape, to_prediction
from gmtool_serving.backends.model_file import read_model_file
from gmtool_serving.backends.session_shapes import SessionShapes, SharedLock

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
GPU_BATCH = 8
"""Default batch size on a GPU; on a CPU it is 1, which is as fast and takes the least memory."""
MEMORY_WORDS = (
    "failed to allocate memory",  # the arena of every provider
    "bad_alloc",
    "bad allocation",  # the same on Windows
    "out of memory",  # CUDA
    "status_alloc_failed",  # cuBLAS, cuDNN up to 8
    "allocation_failed",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, ..._HOST_...
    "resource allocation failed",  # cuBLAS's own text, which onnxruntime prints
)
"""Words in onnxruntime's messages when memory runs out; it has no error type for that."""
BIAS_QUANTIZATION = "WeightBiasQuantization"
"""Optimiser of onnxruntime that makes int32 of an int8 model's biases, for which CUDA has no kernel: the processor
would dequantise each of them in every batch, and copy it to the card."""
MEMORY_SHARE = 0.8
"""Share of the available memory that the non-local block may need."""
TILE_PX = 1024
"""Tile size suggested for larger images, pixels."""


def _say(*words: object) -> None:
    remark(" ".join(map(str, words)).strip())


# These two modules `print` to stdout, which is for results: missing CUDA libraries, and that a session falls back
# to the CPU
for _module in (ort, ort_sessions):
    vars(_module)["print"] = _say


class OrtBackend:
    """ONNX model in ONNX Runtime.

    Args:
        path: ONNX file of `gmtool export`. Its hash is checked before the runtime parses it.
        device: `auto` takes CUDA if driver and provider are available.
        threads: CPU threads; 0 for one a core that this process may use.
        trust: Accept a file that was changed after its export.

    Raises:
        ArtifactError: The file is missing, damaged or foreign.
        BackendError: CUDA was asked for and is unavailable.
    """

    def __init__(
        self, path: Path, *, device: InferenceDevice = "auto", threads: int = 0, trust: bool = False
    ) -> None:
        file = read_model_file(path, trust=trust)
        self.spec, self.model, self.model_sha256 = file.spec, str(path), file.sha256
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised; the rest is noise
        options.intra_op_num_threads = runtime_threads(threads)
        # Threads that spin after a run take CPU time from decoders and from other models
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry(*EXACT_INT8)
        provider = CUDA if _wants_cuda(device) else CPU
        try:
            session = make_session(file.content, file.spec.precision, options, provider)
        except Exception as error:  # onnxruntime raises classes of its native part
            if provider == CPU or device == "cuda":
                raise ArtifactError(f"{path}: onnxruntime refuses it: {_first_line(error)}") from error
            remark(f"CUDA unavailable ({_first_line(error)}): predicting with {CPU}")
            provider = CPU
            session = make_session(file.content, file.spec.precision, options, provider)
        actual = session.get_providers()[0]
        _check_provider(actual, provider, device)
        self._held_bytes = 0
        """Bytes of the largest non-local block so far: the runtime keeps that memory for the next image."""
        self.device: Literal["cpu", "cuda"] = "cuda" if actual == CUDA else "cpu"
        self.lanes = 1 if self.device == "cpu" else 2
        self._computing = threading.Lock()
        content, precision = file.content if self.device == "cuda" else b"", file.spec.precision
        self._sessions = SessionShapes(
            session,
            None
            if self.device == "cpu"
            else lambda count: make_session(content, precision, options, CUDA, batch=count),
        )
        """One on a processor; one for each shape on a card, guarded by `_computing`."""
        self._lanes_inside = SharedLock()
        sides = session.get_inputs()[0].shape[:3]
        self._fixed = tuple(side if isinstance(side, int) else None for side in sides)
        """Batch, height and width, where the graph takes no other."""
        self.preferred_batch = self._fixed[0] or (1 if self.device == "cpu" else GPU_BATCH)
        self.description = f"onnxruntime {ort.__version__} {actual}"

    def predict(self, images: UInt8Array) -> Prediction:
        """Return the model's outputs for RGB images, (N, H, W, 3) uint8.

        Raises:
            ImageTooLargeError: A single image is too large for the machine's memory.
            BackendMemoryError: The batch is; a smaller one may not be.
            BackendError: The runtime failed, or the graph takes another shape.
        """
        count = len(images)
        images = fit_shape(images, self._fixed)
        self._refuse_too_large(images)
        try:
            values = self._run(images) if self.device == "cpu" else self._run_on_card(images)
        except Exception as error:  # onnxruntime raises classes of its native part
            kind = BackendMemoryError if _is_memory(error) else BackendError
            raise kind(f"onnxruntime failed: {_first_line(error)}") from error
        outputs = zip(self.spec.outputs, values, strict=True)
        return to_prediction({name: value[:count] for name, value in outputs})

    def _run(self, images: UInt8Array) -> list[npt.NDArray[Any]]:
        session = self._sessions.session_for(images)
        values: list[npt.NDArray[Any]] = session.run(list(self.spec.outputs), {self.spec.input.name: images})
        return values

    def _run_on_card(self, images: UInt8Array) -> list[npt.NDArray[Any]]:
        """Run with the session of the images' shape; if memory runs out, once more without any other session."""
        with self._computing:
            images = self._sessions.filled(images)
        try:
            with self._lanes_inside.together():
                return self._run_bound(images)
        except Exception as error:  # onnxruntime raises classes of its native part
            if not _is_memory(error):
                raise
        # Out of the handler, so that the failed run holds no session any more
        with self._lanes_inside.alone():
            self._sessions.clear()
            try:
                return self._run_bound(images)
            except Exception as error:
                if _is_memory(error):
                    self._sessions.note_too_many(images)
                raise

    def _run_bound(self, images: UInt8Array) -> list[npt.NDArray[Any]]:
        """Run with inputs and outputs bound to the device: one copy each way, while another batch is computed.

        Only one is computed at a time: the runtime would take the memory of two.
        """
        with self._computing:
            session = self._sessions.session_for(images)
        binding = session.io_binding()
        binding.bind_cpu_input(self.spec.input.name, images)  # copies it to the device now
        for name in self.spec.outputs:
            binding.bind_output(name, self.device)
        with self._computing:
            session.run_with_iobinding(binding)  # waits until the outputs are there
        values: list[npt.NDArray[Any]] = binding.copy_outputs_to_cpu()
        return values

    def _refuse_too_large(self, images: UInt8Array) -> None:
        stride = self.spec.attention_stride
        if stride is None:
            return
        count, height, width, _ = images.shape
        positions = -(-height // stride) * -(-width // stride)
        needed = int(2 * 4 * count * self.spec.attention_heads * positions**2)  # scores and softmax, float32
        if needed <= self._held_bytes:
            return
        # On a GPU host memory is no limit, but an image that exceeds all of it fits on no GPU either
        memory = available_memory() + self._held_bytes if self.device == "cpu" else physical_memory()
        if memory is not None and needed > MEMORY_SHARE * memory:
            kind = ImageTooLargeError if count == 1 else BackendMemoryError
            has_logits = "logits" in self.spec.outputs
            first = "" if has_logits else ", which needs a model with logits: gmtool export --output logits"
            raise kind(
                f"{width}x{height} pixels: the non-local block would need {needed / 2**30:.1f} GiB and "
                f"{memory / 2**30:.1f} are available: shrink it, or cut it with --tile {TILE_PX}x{TILE_PX}{first}"
            )
        self._held_bytes = needed


def make_session(
    content: bytes, precision: Precision, options: ort.SessionOptions, provider: str, *, batch: int = 1
) -> ort.InferenceSession:
    """Return a session of an ONNX model on a provider, for so many images at once on a card.

    onnxruntime does not replace the provider by another one.
    """
    on_cuda = provider == CUDA
    # From bytes: a model cannot then refer to other files
    return ort.InferenceSession(
        content,
        options,
        providers=[(provider, cuda_options(precision, batch=batch) if on_cuda else {})],
        enable_fallback=0,
        disabled_optimizers=[BIAS_QUANTIZATION] if on_cuda else None,
    )


def cuda_options(precision: Precision, *, batch: int = 1) -> dict[str, str]:
    """Return the options of ONNX Runtime's CUDA provider for a model, and for so many images at once.

    Nothing is tried, whatever the names say: EXHAUSTIVE takes cuDNN's second heuristic since ONNX Runtime 1.20,
    HEURISTIC its first (onnxruntime#22705). On an H200 the second took 3.2 s instead of 2.2 to prepare 8 images in
    half precision, and 6.5 ms instead of 24 to compute them; for single images it gained nothing. A float32 model
    computes in float32, not TF32, as a plan does.
    """
    takes_second = precision == "fp16" and batch >= GPU_BATCH
    return {
        "cudnn_conv_algo_search": "EXHAUSTIVE" if takes_second else "HEURISTIC",
        "use_tf32": "0" if precision == "fp32" else "1",
    }


def _wants_cuda(device: InferenceDevice) -> bool:
    if device == "cpu":
        return False
    has_driver, built_with_cuda = _has_cuda_driver(), CUDA in ort.get_available_providers()
    if not has_driver or not built_with_cuda:
        if device == "cuda":
            raise BackendError(
                "--device cuda: no CUDA driver, or this onnxruntime was built without CUDA: use --device cpu"
            )
        if has_driver:
            remark(
                f"predicting with {CPU} beside an NVIDIA driver: this onnxruntime was built without CUDA; for the "
                "GPU, pip uninstall onnxruntime and pip install onnxruntime-gpu"
            )
        return False
    ort.preload_dlls()  # CUDA libraries that pip installed
    return True


def _has_cuda_driver() -> bool:
    driver = load_driver()
    return driver is not None and int(driver.cuInit(0)) == 0


def _check_provider(actual: str, provider: str, device: InferenceDevice) -> None:
    if actual == provider:
        return
    if device == "cuda":
        raise BackendError(
            f"--device cuda: onnxruntime fell back to {actual}; its CUDA provider needs CUDA and cuDNN "
            "libraries of its version: install them, or use --device cpu"
        )
    remark(f"CUDA unavailable: predicting with {actual}")


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in MEMORY_WORDS)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
