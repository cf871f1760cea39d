"""Spec and hash in the metadata of an ONNX file, read and checked before an ONNX library parses it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gmtool.artifact.onnx_wire import read_varint, refers_to_other_files
from gmtool.artifact.spec import ArtifactSpec
from gmtool.errors import ArtifactError

SPEC_KEY = "gmtool.spec"
"""Metadata key of the `ArtifactSpec` as JSON."""
SHA256_KEY = "gmtool.sha256"
"""Metadata key of the file's SHA-256, computed with the 64 digits of the hash set to zero."""
UNSEALED = "0" * 64


def seal(content: bytes) -> bytes:
    """Write the hash of a serialised ONNX model into its metadata.

    Args:
        content: Serialised model with `SHA256_KEY` set to `UNSEALED` in its metadata.

    Returns:
        The same bytes with the 64 zeros replaced by the hash of `content`.
    """
    found = _find_value(content, SHA256_KEY)
    assert found is not None and content[found] == UNSEALED.encode()
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: found.start] + digest + content[found.stop :]


def read_sealed_spec(content: bytes, *, where: Path) -> ArtifactSpec:
    """Check that a model file has not changed since its export, and return its spec.

    Args:
        content: Content of the file.
        where: Path of the file, for messages.

    Raises:
        ArtifactError: As `open_sealed`.
    """
    return open_sealed(content, where=where)[0]


def open_sealed(content: bytes, *, where: Path) -> tuple[ArtifactSpec, str]:
    """Check a model file like `read_sealed_spec`; return its spec and the SHA-256 of the whole file.

    Raises:
        ArtifactError: Not written by gmtool, damaged, changed, of a newer gmtool, or with external weights.
    """
    sha256, spec = _find_value(content, SHA256_KEY), _find_value(content, SPEC_KEY)
    if sha256 is None or spec is None:
        raise ArtifactError(
            f"{where} is not a model that gmtool export wrote, or it was cut short: expected {SHA256_KEY} "
            "in its metadata"
        )
    # Both hashes share the part before the hash, nearly the whole file
    view = memoryview(content)
    whole = hashlib.sha256(view[: sha256.start])
    actual = whole.copy()
    actual.update(UNSEALED.encode())
    actual.update(view[sha256.stop :])
    whole.update(view[sha256.start :])
    digest = content[sha256].decode("ascii", "replace")
    if actual.hexdigest() != digest:
        raise ArtifactError(
            f"{where} was changed after it was exported: sha256 {actual.hexdigest()[:12]}..., expected "
            f"{digest[:12]}...: export it again, or accept the change with --trust"
        )
    _refuse_external(content, where)
    return ArtifactSpec.from_json(content[spec].decode("utf-8", "replace"), where=str(where)), whole.hexdigest()


def open_trusted(content: bytes, *, where: Path) -> tuple[ArtifactSpec, str]:
    """Return the spec of a model file that may have been changed since its export, and the file's SHA-256.

    Raises:
        ArtifactError: No spec in its metadata, of a newer gmtool, or with external weights.
    """
    spec = _find_value(content, SPEC_KEY)
    if spec is None:
        raise ArtifactError(
            f"{where} has no {SPEC_KEY} in its metadata: expected a model that gmtool export wrote; if a tool "
            "changed it, let it keep the metadata"
        )
    _refuse_external(content, where)
    text = content[spec].decode("utf-8", "replace")
    return ArtifactSpec.from_json(text, where=str(where)), hashlib.sha256(content).hexdigest()


def _refuse_external(content: bytes, where: Path) -> None:
    try:
        elsewhere = refers_to_other_files(content)
    except ValueError as error:
        raise ArtifactError(f"{where} is not an ONNX model: {error}") from error
    if elsewhere:
        raise ArtifactError(
            f"{where} has weights in other files, which its hash does not cover; gmtool export writes one file"
        )


def _find_value(content: bytes, key: str) -> slice | None:
    """Return the slice of a metadata value: protobuf writes the key as field 1, then the value as field 2."""
    marker = b"\x0a" + bytes([len(key)]) + key.encode() + b"\x12"
    position = content.rfind(marker)
    if position < 0:
        return None
    try:
        length, position = read_varint(content, position + len(marker), len(content))
    except ValueError:
        return None
    return slice(position, position + length) if position + length <= len(content) else None
