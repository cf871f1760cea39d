"""OpenVINO IR of a model: `.xml` and `.bin`, and a sidecar with their hashes and the model's spec."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gmtool.artifact.spec import ArtifactSpec
from gmtool.errors import ArtifactError
from gmtool.files import write_atomically
from gmtool.json_toml import format_version, parse_json, typed

IR_FORMAT_VERSION = 1
IR_SUFFIX = ".xml"
MAX_SIDECAR_BYTES = 4 * 2**20


@dataclass(frozen=True)
class IrSpec:
    """Sidecar of an IR."""

    artifact: ArtifactSpec
    xml_sha256: str
    bin_sha256: str
    onnx_sha256: str
    """SHA-256 of the ONNX file that it was converted from."""
    version: str
    """Version of OpenVINO that converted it."""
    format_version: int = IR_FORMAT_VERSION

    def to_json(self) -> str:
        """Return the sidecar's content."""
        return json.dumps(asdict(self) | {"artifact": json.loads(self.artifact.to_json())}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> IrSpec:
        """Parse a sidecar.

        Raises:
            ArtifactError: Not a sidecar, or written by a newer gmtool.
        """
        what, damaged = "the sidecar of an OpenVINO model", f"{where} is damaged"
        value = parse_json(text, where=damaged, error=ArtifactError, what=what)
        format_version(value, newest=IR_FORMAT_VERSION, where=where, what=what, error=ArtifactError)
        artifact = ArtifactSpec.from_json(json.dumps(value.get("artifact")), where=where)
        return typed(cls, value | {"artifact": artifact}, where=damaged, error=ArtifactError)


@dataclass(frozen=True)
class Ir:
    """OpenVINO model as converted or read."""

    xml: bytes
    weights: bytes
    spec: IrSpec

    @property
    def sha256(self) -> str:
        """SHA-256 of both files, the `.xml` first."""
        return hashlib.sha256(self.xml + self.weights).hexdigest()


def weights_path(xml: Path) -> Path:
    """Return the path of the weights of an IR: `model_fp32.bin`."""
    return xml.with_suffix(".bin")


def ir_sidecar_path(xml: Path) -> Path:
    """Return the path of an IR's sidecar: `model_fp32.xml.json`."""
    return xml.with_name(xml.name + ".json")


def write_ir(ir: Ir, path: Path) -> None:
    """Write the weights, the sidecar and the `.xml`, in this order: an IR that is whole has all three."""
    write_atomically(weights_path(path), ir.weights)
    write_atomically(ir_sidecar_path(path), ir.spec.to_json())
    write_atomically(path, ir.xml)


def read_ir(path: Path, *, trust: bool = False) -> Ir:
    """Read an IR and check its hashes.

    Args:
        path: `.xml` file.
        trust: Accept files that were changed after their export, as by a tool that compresses weights.

    Raises:
        ArtifactError: A file is missing, damaged, changed or foreign.
    """
    sidecar, weights = ir_sidecar_path(path), weights_path(path)
    for file in (path, weights, sidecar):
        if not file.is_file():
            raise ArtifactError(
                f"{file}: no such file; an OpenVINO model of gmtool export --openvino is {path.name}, "
                f"{weights.name} and {sidecar.name} together"
            )
    if sidecar.stat().st_size > MAX_SIDECAR_BYTES:
        raise ArtifactError(f"{sidecar} is larger than {MAX_SIDECAR_BYTES >> 20} MiB: not a sidecar")
    spec = IrSpec.from_json(sidecar.read_bytes().decode("utf-8", "replace"), where=str(sidecar))
    contents = path.read_bytes(), weights.read_bytes()
    for file, content, expected in zip((path, weights), contents, (spec.xml_sha256, spec.bin_sha256), strict=True):
        actual = hashlib.sha256(content).hexdigest()
        if actual != expected and not trust:
            raise ArtifactError(
                f"{file} was changed after it was exported: sha256 {actual[:12]}..., expected {expected[:12]}...: "
                "export it again, or give --trust if you changed it"
            )
    return Ir(*contents, spec)
