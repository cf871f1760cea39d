"""Export: the deployment graph, the ONNX file, and the proof that it still is the same model."""

import gmtool  # noqa: F401  turns onnxruntime's telemetry off before a module here imports onnxruntime
