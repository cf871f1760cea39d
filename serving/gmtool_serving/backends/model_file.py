"""Read an exported ONNX model and check its hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gmtool.artifact.sealed_onnx import open_sealed, open_trusted
from gmtool.artifact.spec import ArtifactSpec
from gmtool.errors import ArtifactError


@dataclass(frozen=True)
class ModelFile:
    """Content and spec of an ONNX model with a valid hash."""

    content: bytes
    spec: ArtifactSpec
    sha256: str


def read_model_file(path: Path, *, trust: bool = False) -> ModelFile:
    """Read an ONNX model and check its hash.

    Args:
        path: ONNX file.
        trust: Accept a file that was changed after its export, as by a tool that simplifies graphs.

    Raises:
        ArtifactError: The file is missing, damaged, changed or foreign.
    """
    if not path.is_file():
        raise ArtifactError(f"model {path}: no such file; expected a model_*.onnx that gmtool export wrote")
    content = path.read_bytes()
    opened = open_trusted(content, where=path) if trust else open_sealed(content, where=path)
    return ModelFile(content, *opened)
