"""One model in one runtime, for `runtimes.py`: numpy, the runtime, and nothing of gmtool.

    python runtime_child.py RUNTIME MODEL FOLDER

FOLDER has `shapes.json`, `images_I.bin` and `mask_I.bin`. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Runner = Callable[[Any], Any]


def open_onnxruntime(model: str) -> tuple[str, Runner]:
    """Return version and runner of ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # as gmtool: int8 without overflow
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return ort.__version__, lambda images: session.run(None, {"image": images})[0]


def open_reference(model: str) -> tuple[str, Runner]:
    """Return version and runner of ONNX's reference evaluator."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(model)
    return onnx.__version__, lambda images: evaluator.run(None, {"image": images})[0]


def open_openvino(model: str) -> tuple[str, Runner]:
    """Return version and runner of OpenVINO on the processor."""
    import openvino

    core = openvino.Core()
    # Its default lets the plugin compute float32 graphs in bfloat16
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return openvino.__version__.split("-")[0], lambda images: compiled(images)[0]


def open_opencv(model: str) -> tuple[str, Runner]:
    """Return version and runner of OpenCV's dnn."""
    import cv2

    cv2.setNumThreads(1)
    network = cv2.dnn.readNetFromONNX(model)

    def run(images: Any) -> Any:
        network.setInput(images, "image")
        return network.forward()

    return cv2.__version__, run


def build_tensorrt(model: str, shapes: list[list[int]]) -> str:
    """Build an engine with TensorRT-RTX, which needs no GPU; return its version."""
    import tensorrt_rtx as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(model):
        raise RuntimeError(str(parser.get_error(0)))
    config = builder.create_builder_config()
    if -1 in tuple(network.get_input(0).shape):
        profile = builder.create_optimization_profile()
        low, high = np.min(shapes, axis=0).tolist(), np.max(shapes, axis=0).tolist()
        profile.set_shape("image", low, high, high)
        config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        raise RuntimeError("no engine")
    return str(trt.__version__)


def main() -> None:
    """Run the model of the command line."""
    runtime, model, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    shapes = [entry["shape"] for entry in json.loads((folder / "shapes.json").read_text())]
    try:
        if runtime == "tensorrt-rtx":
            version = build_tensorrt(model, shapes)
            print(json.dumps({"version": version, "equal": [], "note": "builds; not run without a GPU"}))
            return
        openers = {"onnx-reference": open_reference, "openvino": open_openvino}
        opener = open_opencv if runtime.startswith("opencv") else openers.get(runtime, open_onnxruntime)
        version, run = opener(model)
        equal = []
        for index, shape in enumerate(shapes):
            images = np.fromfile(folder / f"images_{index}.bin", np.uint8).reshape(shape)
            expected = np.fromfile(folder / f"mask_{index}.bin", np.uint8).reshape(shape[:3])
            outputs = run(images)
            mask = outputs.argmax(axis=1) if outputs.ndim == 4 else outputs
            equal.append(float((mask.reshape(expected.shape) == expected).mean()))
        print(json.dumps({"version": version, "equal": equal}))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())[-250:]}"}))


if __name__ == "__main__":
    main()
