"""Verification set of an exported model, from PyTorch's results on small images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gmtool.artifact.shapes import ShapeProfile
from gmtool.artifact.verification import ShapeRecord, VerificationBatch, VerificationHeader, pack, places
from gmtool.nn.model import GuidedMixNet
from gmtool_export.proof.images import Evidence
from gmtool_export.proof.parity import FIXED, ReferenceBatch, reference_batches_of, shapes_inside
from gmtool_export.record import ArtifactRecord

KEPT_SHAPES = ("smaller", "odd", "traced")
"""Compared shapes that are kept: small, with and without padding, and a batch of two."""
MAX_PIXELS = 150_000
"""Largest batch kept of a model of other shapes, pixels, so that the file stays below a megabyte."""
SLACK = 0.02
"""Share of the pixels that may differ beyond those at the export, where a small image misses the bound."""


def verification_set(
    record: ArtifactRecord, network: GuidedMixNet, evidence: Evidence, profile: ShapeProfile | None
) -> bytes:
    """Return the content of the verification set of a proven model.

    Args:
        record: Record of the model, with its proofs.
        network: Network that it was made from.
        evidence: Images, with PyTorch's results.
        profile: Shapes that the model takes; None for any.
    """
    proof = record.proofs[-1]
    reached = {row.shape: row.agreement for row in proof.rows}
    batches = _batches(network, evidence, profile)
    kept = tuple(
        _kept(name, batch, proof.tolerance.min_agreement, reached.get(name)) for name, batch in batches.items()
    )
    score = proof.score
    header = VerificationHeader(
        model=record.file,
        model_sha256=record.sha256,
        weights_sha256=record.spec.provenance.weights_sha256,
        precision=record.precision,
        runtime=proof.runtime,
        miou=None if score is None else score.miou,
        miou_pytorch=None if score is None else score.miou_pytorch,
        num_scored=0 if score is None else score.num_images,
        shapes=tuple(batch.record for batch in kept),
        seal="",
    )
    return pack(header, kept)


def _batches(
    network: GuidedMixNet, evidence: Evidence, profile: ShapeProfile | None
) -> Mapping[str, ReferenceBatch]:
    if FIXED in evidence.batches:
        return evidence.batches
    if profile is None:
        return {name: evidence.batches[name] for name in KEPT_SHAPES}
    shapes = {
        name: shape
        for name, shape in shapes_inside(profile).items()
        if shape.pixels <= MAX_PIXELS or name == "smallest"
    }
    return reference_batches_of(network, evidence.images, shapes)


def _kept(name: str, batch: ReferenceBatch, bound: float, reached: float | None) -> VerificationBatch:
    required = bound if reached is None or reached >= bound else reached - SLACK
    classes = batch.logits.shape[1]
    logits = np.moveaxis(batch.logits, 1, -1).reshape(-1, classes)
    mask = batch.logits.argmax(axis=1).astype(np.uint8)
    return VerificationBatch(ShapeRecord(name, required, reached), batch.images, mask, logits[places(mask.size)])
