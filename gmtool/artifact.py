"""Where an ONNX file keeps its spec and its own hash, and how both are checked before it is used."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gmtool.errors import ArtifactError

SPEC_KEY = "gmtool.spec"
"""Metadata key of the `ArtifactSpec` as JSON."""
SHA256_KEY = "gmtool.sha256"
"""Metadata key of the file's SHA-256, computed with these 64 digits themselves set to zero."""
UNSEALED = "0" * 64


def seal(content: bytes) -> bytes:
    """Put the hash of a serialised ONNX model into the model itself.

    Args:
        content: A serialised model whose metadata has `SHA256_KEY` set to `UNSEALED`.

    Returns:
        The same bytes with those 64 zeros replaced by the hash of `content`.
    """
    position = _seal_position(content, UNSEALED)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:position] + digest + content[position + len(digest) :]


def check_seal(content: bytes, digest: str | None, *, where: Path) -> None:
    """Check that a model file is what was exported, byte for byte.

    Args:
        content: The file's bytes.
        digest: What its metadata has under `SHA256_KEY`.
        where: The file, for messages.

    Raises:
        ArtifactError: No hash, or another one than the bytes have.
    """
    if digest is None or len(digest) != len(UNSEALED):
        raise ArtifactError(f"{where} was not written by gmtool export: it has no {SHA256_KEY}")
    position = _seal_position(content, digest)
    actual = hashlib.sha256(content[:position])
    actual.update(UNSEALED.encode())
    actual.update(content[position + len(UNSEALED) :])
    if actual.hexdigest() != digest:
        raise ArtifactError(
            f"{where} was changed after it was exported: sha256 {actual.hexdigest()[:12]}..., "
            f"expected {digest[:12]}...: export it again"
        )


def _seal_position(content: bytes, digits: str) -> int:
    marker = SHA256_KEY.encode()
    # The value follows its key within a few bytes of protobuf framing
    key = content.rfind(marker)
    position = content.find(digits.encode(), key)
    if key < 0 or not 0 <= position - key - len(marker) <= 8:
        raise ArtifactError("the model has no place for its hash: was it written by gmtool export?")
    return position
