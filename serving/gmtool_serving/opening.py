"""Reading a model, checking it and setting its runtime up while everything else is loaded; light to import."""

from __future__ import annotations

import contextlib
import importlib
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gmtool.artifact import open_sealed
from gmtool.errors import ArtifactError
from gmtool.plan import PLAN_SUFFIX
from gmtool.spec import ArtifactSpec

if TYPE_CHECKING:
    from gmtool_serving.backend import Backend, DeviceName


@dataclass(frozen=True)
class ModelFile:
    """An ONNX model that is what was exported."""

    content: bytes
    spec: ArtifactSpec
    sha256: str


def read_model_file(path: Path) -> ModelFile:
    """Read and check a model.

    Raises:
        ArtifactError: The file is missing, damaged, changed or foreign.
    """
    if not path.is_file():
        raise ArtifactError(f"model {path}: no such file; expected a model_*.onnx of gmtool export")
    content = path.read_bytes()
    return ModelFile(content, *open_sealed(content, where=path))


def open_ahead(
    path: Path, *, device: DeviceName = "auto", threads: int = 0, trust: bool = False
) -> Future[Backend]:
    """Begin `open_backend` in a thread. Hashing and setting up leave the interpreter to others meanwhile.

    The runtime is imported here and not in the thread: numpy cannot be imported by two threads at once. A process
    that ends waits for the thread: a runtime that is being set up must not be torn down.
    """
    future: Future[Backend] = Future()
    imported = threading.Event()

    def work() -> None:
        try:
            file = None if path.suffix == PLAN_SUFFIX else read_model_file(path)
            imported.wait()
            from gmtool_serving.backend import open_backend

            future.set_result(open_backend(path, device=device, threads=threads, trust=trust, file=file))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="open-model").start()
    try:
        with contextlib.suppress(ImportError):  # for `open_backend` to say
            importlib.import_module(
                "gmtool_serving.backend" if path.suffix == PLAN_SUFFIX else "gmtool_serving.ort"
            )
    finally:
        imported.set()
    return future
