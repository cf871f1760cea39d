"""Serving: run an exported model over images and score it. Never imports torch."""

import gmtool  # noqa: F401  turns onnxruntime's telemetry off before a module here imports onnxruntime
