"""gmtool: semi-supervised semantic segmentation, from a few labeled images to a deployed model."""

import os

__version__ = "0.1.0"

# onnxruntime reads it when it is loaded, and would else write an id below the home folder and look a host up.
# Here, since every process imports this package before onnxruntime; ORT_DISABLE_TELEMETRY=0 overrides it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
