"""OpenVINO backend, on processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from gmtool.artifact.openvino_ir import read_ir
from gmtool.errors import ArtifactError, BackendError, needs_extra
from gmtool.images import UInt8Array
from gmtool.resources import runtime_threads
from gmtool_serving.backends.base import InferenceDevice, Prediction, fit_shape, to_prediction


class OpenVinoBackend:
    """OpenVINO IR on the processor, computed in float32 or int8 as the graph says.

    Args:
        path: `.xml` file of `gmtool export --openvino`; its hashes are checked before OpenVINO parses it.
        device: `auto` and `cpu` are the same here; `cuda` is refused.
        threads: CPU threads; 0 for one a core that this process may use.
        trust: Accept files that were changed after their export.

    Raises:
        ArtifactError: A file is missing, damaged or foreign.
        BackendError: `device` is `cuda`.
        MissingExtraError: OpenVINO is not installed.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    lanes = 1
    preferred_batch = 1

    def __init__(
        self, path: Path, *, device: InferenceDevice = "auto", threads: int = 0, trust: bool = False
    ) -> None:
        if device == "cuda":
            raise BackendError(f"--device cuda: {path} is an OpenVINO model, for processors: use the ONNX model")
        ir = read_ir(path, trust=trust)
        with needs_extra("openvino", "running an OpenVINO model"):
            import openvino
        self.spec, self.model, self.model_sha256 = ir.spec.artifact, str(path), ir.sha256
        # Without the hint OpenVINO computes float32 graphs in bfloat16 where the processor can
        options: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if count := runtime_threads(threads):
            options["INFERENCE_NUM_THREADS"] = count
        try:
            core = openvino.Core()
            weights = openvino.Tensor(np.frombuffer(ir.weights, dtype=np.uint8))
            self._model = core.compile_model(core.read_model(ir.xml, weights), "CPU", options)
        except Exception as error:  # OpenVINO raises classes of its native part
            raise ArtifactError(f"{path}: OpenVINO {openvino.__version__} refuses it: {_line(error)}") from error
        shape = self.spec.input.shape
        self._fixed: tuple[int | None, ...] = (None, None, None) if shape is None else shape
        self.description = f"openvino {openvino.__version__.split('-')[0]} CPU"

    def predict(self, images: UInt8Array) -> Prediction:
        """Return the model's outputs for RGB images, (N, H, W, 3) uint8.

        Raises:
            BackendError: OpenVINO failed, or the graph takes another shape.
        """
        count = len(images)
        batch = fit_shape(images, self._fixed)
        try:
            values = self._model({self.spec.input.name: batch})
            outputs: dict[str, Any] = {name: values[name][:count] for name in self.spec.outputs}
        except Exception as error:  # OpenVINO raises classes of its native part
            raise BackendError(f"OpenVINO failed: {_line(error)}") from error
        return to_prediction(outputs)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[-300:]
