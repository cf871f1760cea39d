"""Print where ONNX Runtime's CUDA provider places the nodes of models, as JSON: `placement.py PRECISION.onnx...`.

The session is made as in a prediction. That ends with cuBLAS, which the stand-in does not have; the nodes are
placed and logged before.
"""

import contextlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import cast

import onnxruntime as ort
from gmtool_serving.backends.onnx_runtime import CUDA, make_session

from gmtool.artifact.spec import Precision

PROVIDER = re.compile(r"Node\(s\) placed on \[(\w+)\]|All nodes placed on \[(\w+)\]")
NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+(\w+) \(")


def placement(model: Path) -> dict[str, list[str]]:
    """Return the operators of the nodes on each provider."""
    options = ort.SessionOptions()
    options.log_severity_level = 0
    options.log_verbosity_level = 1
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)  # the log is written by native code
        with contextlib.suppress(Exception):
            make_session(model.read_bytes(), cast(Precision, model.stem), options, CUDA)
        os.dup2(stderr, 2)
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").splitlines()
    found: dict[str, list[str]] = {}
    provider = None
    for line in lines:
        if named := PROVIDER.search(line):
            provider = named[1] or named[2]
        elif provider and (node := NODE.search(line)):
            found.setdefault(provider, []).append(node[1])
    return found


if __name__ == "__main__":
    ort.preload_dlls()
    sys.stdout.write("\n" + json.dumps([placement(Path(model)) for model in sys.argv[1:]]) + "\n")
