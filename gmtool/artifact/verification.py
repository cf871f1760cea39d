"""Verification set of an exported model: small images with PyTorch's masks, in a sealed file beside the model."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gmtool.artifact.spec import Precision
from gmtool.errors import ArtifactError
from gmtool.images import UInt8Array
from gmtool.json_toml import format_version, parse_json, typed

FORMAT_VERSION = 1
SUFFIX = ".verify.npz"
"""Ending of the file's name, after the whole name of its model."""
HEADER = "header"
MAX_BYTES = 64 * 2**20
"""Largest size of all arrays; those that an export writes have some hundred kB."""

Float32Array = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ShapeRecord:
    """Batch of one shape: bounds and measurements of the export."""

    name: str
    required: float
    """Smallest share of pixels with PyTorch's label, in [0, 1]."""
    at_export: float | None
    """Share that the exported model had; None if it could not run there."""


@dataclass(frozen=True)
class VerificationHeader:
    """Model that a verification set belongs to, and its scores at the export."""

    model: str
    """Name of the model's file."""
    model_sha256: str
    weights_sha256: str
    """SHA-256 of the checkpoint's weights: the set fits every model that was made from them."""
    precision: Precision
    runtime: str
    """Runtime of the comparison at the export."""
    miou: float | None
    """mIoU of the model on validation images at the export, in [0, 1]; None if it was not scored."""
    miou_pytorch: float | None
    num_scored: int
    """Images of both scores."""
    shapes: tuple[ShapeRecord, ...]
    seal: str
    """SHA-256 of the other fields and of all arrays."""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class VerificationBatch:
    """Images of one shape with PyTorch's results."""

    record: ShapeRecord
    images: UInt8Array
    """RGB, (N, H, W, 3)."""
    mask: UInt8Array
    """PyTorch's class indices, (N, H, W)."""
    logits: Float32Array
    """PyTorch's logits at `places`, (P, C)."""

    @property
    def size(self) -> str:
        """Batch, height and width, as `2x160x224`."""
        return "x".join(map(str, self.mask.shape))


@dataclass(frozen=True)
class VerificationSet:
    """All batches of a model."""

    header: VerificationHeader
    batches: tuple[VerificationBatch, ...]


def path_beside(model: Path) -> Path:
    """Return the path of a model's verification set."""
    return model.with_name(model.name + SUFFIX)


def places(pixels: int, count: int = 64) -> npt.NDArray[np.int64]:
    """Return the flat indices of the pixels whose logits are kept, (P,), evenly spaced over a batch."""
    return np.linspace(0, pixels - 1, min(count, pixels)).astype(np.int64)


def pack(header: VerificationHeader, batches: tuple[VerificationBatch, ...]) -> bytes:
    """Return the content of a verification set; the header's `seal` is computed.

    An npz archive, which numpy alone reads: `header`, JSON as bytes, and `images_I`, `mask_I`, `logits_I`.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for index, batch in enumerate(batches):
        arrays |= {f"images_{index}": batch.images, f"mask_{index}": batch.mask, f"logits_{index}": batch.logits}
    value = asdict(header)
    value["seal"] = _seal(value, arrays)
    text = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{HEADER: text}, **arrays)
    return buffer.getvalue()


def read_verification(path: Path) -> VerificationSet:
    """Read a verification set and check its seal.

    Raises:
        ArtifactError: Missing, damaged, changed, or of a newer gmtool.
    """
    if not path.is_file():
        raise ArtifactError(
            f"{path}: no such file; gmtool export writes it beside the model, unless with --no-parity: copy it "
            "here with the model, or export again"
        )
    arrays = _read_arrays(path)
    damaged, what = f"{path}: damaged", "the verification set of a model"
    value = parse_json(arrays.pop(HEADER).tobytes(), where=damaged, error=ArtifactError, what=what)
    format_version(value, newest=FORMAT_VERSION, where=str(path), what=what, error=ArtifactError)
    header = typed(VerificationHeader, value, where=damaged, error=ArtifactError)
    if _seal(value, arrays) != header.seal:
        raise ArtifactError(f"{path} was changed after it was exported, or is damaged: export the model again")
    batches = tuple(_batch(record, index, arrays) for index, record in enumerate(header.shapes))
    return VerificationSet(header, batches)


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ArtifactError(f"{path} has {size / 2**20:.0f} MiB; a verification set has at most 64")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except ArtifactError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header raise a dozen types
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: not a verification set, or damaged: {reason}") from error
    if HEADER not in arrays:
        raise ArtifactError(f"{path}: not a verification set: no {HEADER} in it")
    return arrays


def _batch(record: ShapeRecord, index: int, arrays: Arrays) -> VerificationBatch:
    return VerificationBatch(record, arrays[f"images_{index}"], arrays[f"mask_{index}"], arrays[f"logits_{index}"])


def _seal(header: Mapping[str, Any], arrays: Arrays) -> str:
    """Return the SHA-256 of a header without its seal, and of all arrays."""
    fields = {name: value for name, value in header.items() if name != "seal"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
