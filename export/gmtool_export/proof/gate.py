"""Gate: bounds that an exported model must meet, and errors for those it misses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gmtool.artifact.spec import Precision
from gmtool.errors import ParityError
from gmtool_export.proof.miou_drop import MIN_SHARE, ScoreProof
from gmtool_export.proof.parity import FIXED, OWN_SIZE, ParityRow

MIN_CLASSES = 3
"""Smallest number of predicted classes: with fewer, agreement proves nothing. Of two classes, both."""
MAX_RELATIVE_DIFFERENCE = 1e-3
"""Largest difference of two logits in float32 as a share of the largest logit: ten times what rounding does,
a hundredth of what a wrong pooling does."""

MIN_AT_SHAPE: dict[Precision, float] = {"fp16": 0.95, "int8": 0.5}
"""Smallest share of equal pixels at any shape: less is a broken graph. The bound of these precisions is judged on
whole images, since of a small crop a few pixels beside a class boundary are some per cent; without any, at every
shape."""


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted difference between an exported model and its network."""

    min_agreement: float
    """Smallest share of pixels with the same label, in [0, 1]: in fp32 at every shape, else on whole images."""
    max_miou_drop: float
    """Largest loss of mIoU on the validation images, points."""


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(min_agreement=0.999, max_miou_drop=0.05),
    "fp16": Tolerance(min_agreement=0.995, max_miou_drop=0.2),
    "int8": Tolerance(min_agreement=0.9, max_miou_drop=1.0),
}


def refuse_weak_evidence(classes_predicted: int, num_classes: int) -> None:
    """Check that the network predicts enough classes for agreement to mean anything.

    Raises:
        ParityError: It predicts too few.
    """
    needed = min(MIN_CLASSES, num_classes)
    if classes_predicted < needed:
        raise ParityError(
            f"the network gives only {classes_predicted} of its {num_classes} classes {MIN_SHARE:.1%} of the "
            f"pixels or more; expected {needed}, else agreement proves nothing. Nothing was written: give "
            "images that show more classes (--images DIR), train it longer, or accept it (--allow-few-classes)"
        )


def judge(
    what: str,
    precision: Precision,
    rows: Sequence[ParityRow],
    score: ScoreProof | None,
    tolerance: Tolerance,
    *,
    end: str = "nothing was written",
) -> None:
    """Check a model against the bounds.

    Args:
        what: Name of the model, for messages.
        precision: Precision of the model.
        rows: Comparison at every shape.
        score: Comparison on the validation images, or None.
        tolerance: Bounds.
        end: Last words of the message.

    Raises:
        ParityError: The first bound that the model misses.
    """
    # Masks and logits at every shape
    whole = _agreement_on_whole_images(rows, score)
    is_floor = whole is not None and MIN_AT_SHAPE.get(precision, 1.0) < tolerance.min_agreement
    least = MIN_AT_SHAPE[precision] if is_floor else tolerance.min_agreement
    for row in rows:
        where = f"at {row.batch}x{row.height}x{row.width} ({row.shape})"
        if row.agreement < least:
            raise ParityError(
                f"{what} agrees with PyTorch on {row.agreement:.4%} of the pixels {where}; "
                f"expected {least:.2%}{'' if is_floor else ' (--min-agreement)'}: {end}"
            )
        if row.unexplained:
            raise ParityError(
                f"{what} gives {row.unexplained} pixels {where} another label than PyTorch, though their two best "
                f"classes differ by more than the rounding errors there: {end}"
            )
        if precision == "fp32" and (row.max_difference or 0) > MAX_RELATIVE_DIFFERENCE * row.max_logit:
            raise ParityError(
                f"{what} gives logits that differ from PyTorch's by {row.max_difference:.3g} {where}; expected at "
                f"most {MAX_RELATIVE_DIFFERENCE:.1%} of the largest, {row.max_logit:.3g}: {end}"
            )
    # Whole images
    if precision in MIN_AT_SHAPE and whole is not None and whole < tolerance.min_agreement:
        raise ParityError(
            f"{what} agrees with PyTorch on {whole:.2%} of the pixels of whole images; expected "
            f"{tolerance.min_agreement:.2%} (--min-agreement): {end}"
        )
    # mIoU on validation images
    if score is not None and score.drop > tolerance.max_miou_drop:
        raise ParityError(
            f"{what} scores {100 * score.miou:.2f} % mIoU on {score.num_images} images of {score.split}, "
            f"{score.drop:.2f} points below PyTorch; expected at most {tolerance.max_miou_drop} "
            f"(--max-miou-drop), worst image {score.worst.id} ({score.worst.agreement:.2%} agree): {end}"
        )


def _agreement_on_whole_images(rows: Sequence[ParityRow], score: ScoreProof | None) -> float | None:
    """Return the share of equal pixels of the scored images, or else of the image at its own size."""
    if score is not None:
        return score.agreement
    return next((row.agreement for row in rows if row.shape in (OWN_SIZE, FIXED)), None)
