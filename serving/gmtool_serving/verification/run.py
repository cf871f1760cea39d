"""Compare a model, run by its backend on this machine, with PyTorch's masks of its verification set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.artifact.verification import VerificationBatch, VerificationSet, places
from gmtool.errors import ArtifactError, ParityError
from gmtool_serving.backends.base import Backend


@dataclass(frozen=True)
class VerifiedShape:
    """Result of one batch."""

    name: str
    size: str
    """Batch, height and width, as `2x160x224`."""
    agreement: float
    """Share of pixels with PyTorch's label, in [0, 1]."""
    required: float
    at_export: float | None
    """Share that the exported model had; None if it could not run there."""
    max_difference: float | None
    """Largest difference of some logits from PyTorch's; None if the model gives none."""

    @property
    def passes(self) -> bool:
        """Return whether enough pixels agree."""
        return self.agreement >= self.required


@dataclass(frozen=True)
class Verification:
    """Results of all batches."""

    model: str
    backend: str
    is_exported_file: bool
    """Whether it is the very file that was exported, rather than another one of the same weights."""
    shapes: tuple[VerifiedShape, ...]
    given: VerificationSet

    @property
    def passes(self) -> bool:
        """Return whether all batches pass."""
        return all(shape.passes for shape in self.shapes)

    def require(self) -> None:
        """Raise `ParityError` for the worst batch that does not pass."""
        failed = [shape for shape in self.shapes if not shape.passes]
        if failed:
            worst = min(failed, key=lambda shape: shape.agreement - shape.required)
            raise ParityError(
                f"{self.model} does not compute here what PyTorch computed: {worst.agreement:.4%} of the pixels "
                f"are equal at {worst.size}, expected {worst.required:.2%}, in {self.backend}: do not use it here"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        header = self.given.header
        return {
            "model": self.model,
            "backend": self.backend,
            "passes": self.passes,
            "is_exported_file": self.is_exported_file,
            "shapes": [asdict(shape) | {"passes": shape.passes} for shape in self.shapes],
            "export": {
                name: getattr(header, name) for name in ("model", "runtime", "miou", "miou_pytorch", "num_scored")
            },
        }


def verify(backend: Backend, given: VerificationSet, *, where: Path) -> Verification:
    """Run a model on its verification set.

    Args:
        backend: A loaded model.
        given: Its set.
        where: File of the set, for messages.

    Raises:
        ArtifactError: The set belongs to another model.
        BackendError: The runtime failed, or cannot take a shape.
    """
    expected, actual = given.header.weights_sha256, backend.spec.provenance.weights_sha256
    if expected != actual:
        raise ArtifactError(
            f"{where} belongs to another model: weights {expected[:12]}..., {backend.model} has {actual[:12]}...: "
            "take the file that was exported with it"
        )
    return Verification(
        model=backend.model,
        backend=backend.description,
        is_exported_file=backend.model_sha256 == given.header.model_sha256,
        shapes=tuple(_verify(backend, batch) for batch in given.batches),
        given=given,
    )


def _verify(backend: Backend, batch: VerificationBatch) -> VerifiedShape:
    prediction = backend.predict(batch.images)
    if prediction.mask.shape != batch.mask.shape:
        raise ParityError(f"{backend.model} gives masks {prediction.mask.shape}; expected {batch.mask.shape}")
    difference = None
    if prediction.logits is not None:
        classes = prediction.logits.shape[1]
        logits = np.moveaxis(prediction.logits, 1, -1).reshape(-1, classes)[places(batch.mask.size)]
        if logits.shape != batch.logits.shape:
            raise ParityError(f"{backend.model} gives {classes} classes; expected {batch.logits.shape[1]}")
        difference = float(np.abs(logits - batch.logits).max())
    record = batch.record
    agreement = float((prediction.mask == batch.mask).mean())
    return VerifiedShape(record.name, batch.size, agreement, record.required, record.at_export, difference)
