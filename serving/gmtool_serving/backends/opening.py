"""Open an exported model with its runtime."""

from __future__ import annotations

from pathlib import Path

from gmtool.artifact.openvino_ir import IR_SUFFIX
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
    """Load an exported model: `.plan` with TensorRT, `.xml` with OpenVINO, any other file with ONNX Runtime.

    Args:
        path: Model file of `gmtool export`.
        device: `auto` takes CUDA if driver and provider are available.
        threads: CPU threads of an ONNX model; 0 for one a core.
        trust: Load a TensorRT plan without a sidecar, or an ONNX or OpenVINO model that was changed after its
            export.

    Raises:
        ArtifactError: The file is missing, damaged or foreign.
        BackendError: Device unavailable.
        MissingExtraError: The runtime is not installed.
    """
    if path.suffix == PLAN_SUFFIX:
        from gmtool_serving.backends.tensorrt import TrtBackend

        return TrtBackend(path, device=device, trust=trust)
    if path.suffix == IR_SUFFIX:
        from gmtool_serving.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(path, device=device, threads=threads, trust=trust)
    with needs_extra("serve", "running a model"):
        from gmtool_serving.backends.onnx_runtime import OrtBackend
    return OrtBackend(path, device=device, threads=threads, trust=trust)
