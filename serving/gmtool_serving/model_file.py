"""Reading an exported ONNX file and checking its seal, apart from the runtime that will run it."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifact import read_sealed_spec
from gmtool.errors import ArtifactError
from gmtool.spec import ArtifactSpec


@dataclass(frozen=True)
class ModelFile:
    """A model that is what was exported."""

    content: bytes
    spec: ArtifactSpec
    sha256: str


def read_model_file(path: Path) -> ModelFile:
    """Read and check a model. Nearly all of it is hashing, during which other threads run.

    Raises:
        ArtifactError: The file is missing, damaged, changed or foreign.
    """
    if not path.is_file():
        raise ArtifactError(f"model {path}: no such file; expected a model_*.onnx of gmtool export")
    content = path.read_bytes()
    spec = read_sealed_spec(content, where=path)
    return ModelFile(content, spec, hashlib.sha256(content).hexdigest())


def read_ahead(path: Path) -> Future[ModelFile]:
    """Begin `read_model_file` in a thread, which the process does not wait for when it ends."""
    future: Future[ModelFile] = Future()

    def read() -> None:
        try:
            future.set_result(read_model_file(path))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=read, name="read-model", daemon=True).start()
    return future
