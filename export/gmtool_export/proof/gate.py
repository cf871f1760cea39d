"""Whether what was measured lets an exported model pass, and the line that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gmtool.artifact.spec import Precision
from gmtool.errors import ParityError
from gmtool_export.proof.miou_drop import MIN_SHARE, ScoreProof
from gmtool_export.proof.parity import ParityRow

MIN_CLASSES = 3
"""A network that predicts fewer agrees with anything; of two classes, both must be predicted."""
MAX_RELATIVE_DIFFERENCE = 1e-3
"""Largest difference of two logits in float32 as a share of the largest logit: ten times what rounding does,
a hundredth of what a wrong pooling does."""


@dataclass(frozen=True)
class Tolerance:
    """How far an exported model may be from its network."""

    min_agreement: float
    """Share of the pixels with the same label at every shape, in [0, 1]."""
    max_miou_drop: float
    """Points of mIoU on the validation images."""


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(min_agreement=0.999, max_miou_drop=0.05),
    "fp16": Tolerance(min_agreement=0.995, max_miou_drop=0.2),
    "int8": Tolerance(min_agreement=0.9, max_miou_drop=1.0),
}


def refuse_weak_evidence(classes_predicted: int, num_classes: int) -> None:
    """Raise `ParityError` if the network predicts too few classes on the images for agreement to mean anything."""
    needed = min(MIN_CLASSES, num_classes)
    if classes_predicted < needed:
        raise ParityError(
            f"the network gives only {classes_predicted} of its {num_classes} classes {MIN_SHARE:.1%} of the "
            f"pixels or more; expected {needed}: whatever it is compared with agrees. Nothing was written: give "
            "images that show more classes (--images DIR), train it longer, or accept it (--allow-few-classes)"
        )


def judge(
    what: str,
    precision: Precision,
    rows: Sequence[ParityRow],
    score: ScoreProof | None,
    tolerance: Tolerance,
) -> None:
    """Raise `ParityError` for the first bound that a model misses.

    Args:
        what: The model and what ran it, for the message.
        precision: What the model computes in.
        rows: The comparison at every shape.
        score: The comparison on the validation list, where there is one.
        tolerance: The bounds.
    """
    end = "nothing was written"
    for row in rows:
        where = f"at {row.batch}x{row.height}x{row.width} ({row.shape})"
        if row.agreement < tolerance.min_agreement:
            raise ParityError(
                f"{what} agrees with PyTorch on {row.agreement:.4%} of the pixels {where}; "
                f"expected {tolerance.min_agreement:.2%} (--min-agreement): {end}"
            )
        if row.unexplained:
            raise ParityError(
                f"{what} gives {row.unexplained} pixels {where} another label than PyTorch, though their two best "
                f"classes are further apart than any rounding seen there: {end}"
            )
        if precision == "fp32" and (row.max_difference or 0) > MAX_RELATIVE_DIFFERENCE * row.max_logit:
            raise ParityError(
                f"{what} gives logits that differ from PyTorch's by {row.max_difference:.3g} {where}; expected at "
                f"most {MAX_RELATIVE_DIFFERENCE:.1%} of the largest, {row.max_logit:.3g}: {end}"
            )
    if score is not None and score.drop > tolerance.max_miou_drop:
        raise ParityError(
            f"{what} scores {100 * score.miou:.2f} % mIoU on {score.num_images} images of {score.split}, "
            f"{score.drop:.2f} points below PyTorch; expected at most {tolerance.max_miou_drop} "
            f"(--max-miou-drop), worst image {score.worst.id} ({score.worst.agreement:.2%} agree): {end}"
        )
