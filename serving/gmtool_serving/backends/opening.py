"""Open an exported model with its runtime."""

from __future__ import annotations

from pathlib import Path

from gmtool.artifact.tensorrt_plan import PLAN_SUFFIX
from gmtool.errors import needs_extra
from gmtool_serving.backends.base import Backend, InferenceDevice


def open_backend(
    path: Path,
    *,
    device: InferenceDevice = "auto",
    threads: int = 0,
    trust: bool = False,
) -> Backend:
    """Load an exported model: `.plan` with TensorRT, anything else as ONNX.

    Args:
        path: A file that `gmtool export` wrote.
        device: `auto` takes CUDA where a driver and the provider are there, and says so if not.
        threads: Threads of the processor for an ONNX model; 0 for one a core.
        trust: Take a TensorRT plan that no sidecar vouches for. An ONNX model is not executable and is never taken
            without its seal.

    Raises:
        ArtifactError: The file is missing, damaged or foreign.
        BackendError: Device unavailable.
        MissingExtraError: The runtime is not installed.
    """
    if path.suffix == PLAN_SUFFIX:
        from gmtool_serving.backends.tensorrt import TrtBackend

        return TrtBackend(path, device=device, trust=trust)
    with needs_extra("serve", "running a model"):
        from gmtool_serving.backends.onnx_runtime import OrtBackend
    return OrtBackend(path, device=device, threads=threads)
