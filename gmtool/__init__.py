"""Semi-supervised semantic segmentation, from a few labeled images to a deployed model.

`load`, `train`, `resume`, `export`, `verify`, `predict`, `evaluate` and `select` do what the commands do:
docs/python.md. They are imported when they are used first: importing gmtool loads neither torch nor numpy.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmtool_export.targets import TensorRTTarget, TritonTarget
    from gmtool_serving.pipeline.job import Observer, UnfinishedError
    from gmtool_serving.pipeline.model import Model, Result
    from gmtool_serving.verification.run import Verification

    from gmtool.api.evaluation import evaluate
    from gmtool.api.exporting import export
    from gmtool.api.prediction import load, predict
    from gmtool.api.selecting import select
    from gmtool.api.training import resume, train
    from gmtool.api.verification import verify
    from gmtool.errors import GmtoolError, UsageError

__version__ = "0.1.0"

__all__ = [
    "GmtoolError",
    "Model",
    "Observer",
    "Result",
    "TensorRTTarget",
    "TritonTarget",
    "UnfinishedError",
    "UsageError",
    "Verification",
    "__version__",
    "evaluate",
    "export",
    "load",
    "predict",
    "resume",
    "select",
    "train",
    "verify",
]

_MODULES = {
    "GmtoolError": "gmtool.errors",
    "Model": "gmtool_serving.pipeline.model",
    "Observer": "gmtool_serving.pipeline.job",
    "Result": "gmtool_serving.pipeline.model",
    "TensorRTTarget": "gmtool_export.targets",
    "TritonTarget": "gmtool_export.targets",
    "UnfinishedError": "gmtool_serving.pipeline.job",
    "UsageError": "gmtool.errors",
    "Verification": "gmtool_serving.verification.run",
    "evaluate": "gmtool.api.evaluation",
    "export": "gmtool.api.exporting",
    "load": "gmtool.api.prediction",
    "predict": "gmtool.api.prediction",
    "resume": "gmtool.api.training",
    "select": "gmtool.api.selecting",
    "train": "gmtool.api.training",
    "verify": "gmtool.api.verification",
}
"""Module of each name of `__all__`."""

# onnxruntime reads it when it is loaded, and would else write an id below the home folder and look a host up.
# Here, since every process imports this package before onnxruntime; ORT_DISABLE_TELEMETRY=0 overrides it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module 'gmtool' has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
