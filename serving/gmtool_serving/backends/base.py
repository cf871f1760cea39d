"""Interface of a loaded model, and its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from gmtool.artifact.spec import ArtifactSpec
from gmtool.errors import BackendError, BackendMemoryError, NonFiniteError, UnknownLabelError
from gmtool.images import UInt8Array

InferenceDevice = Literal["auto", "cpu", "cuda"]


class Prediction:
    """Outputs of a model for a batch of images of one size; what follows from logits is computed when it is read.

    Args:
        mask: Class indices, (N, H, W) uint8; None to take them from `logits`.
        confidence: Largest probability times 255, (N, H, W) uint8; None for none, or to take it from `logits`.
        logits: Scores before softmax, (N, C, H, W) float32; None if the model has no such output.
        embedding: Vectors of the images, (N, D) float32; None if the model has no such output.
    """

    def __init__(
        self,
        mask: UInt8Array | None,
        confidence: UInt8Array | None = None,
        logits: npt.NDArray[np.float32] | None = None,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> None:
        assert mask is not None or logits is not None
        self.embedding = embedding
        self._mask, self._confidence, self.logits = mask, confidence, logits

    @cached_property
    def mask(self) -> UInt8Array:
        """Class indices, (N, H, W) uint8."""
        if self._mask is not None:
            return self._mask
        assert self.logits is not None
        labels: UInt8Array = self.logits.argmax(axis=1).astype(np.uint8)
        return labels

    @cached_property
    def confidence(self) -> UInt8Array | None:
        """Largest probability times 255, (N, H, W) uint8; None if the model has neither this output nor logits."""
        if self._confidence is not None or self.logits is None:
            return self._confidence
        # The largest probability is 1 / sum(exp(logits - largest)), without memory for all probabilities
        largest = self.logits.max(axis=1)
        total = np.exp(self.logits - largest[:, None]).sum(axis=1)
        rounded: UInt8Array = np.rint(255 / total).astype(np.uint8)
        return rounded


class Backend(Protocol):
    """A loaded model."""

    spec: ArtifactSpec
    description: str
    """Runtime and device, for reports: "onnxruntime 1.31 CPUExecutionProvider"."""
    model: str
    """Path of the model file."""
    model_sha256: str
    """SHA-256 of the model file."""
    device: Literal["cpu", "cuda"]
    """Where the model computes."""
    lanes: int
    """Threads that predict at the same time: 2 where one batch is copied while another is computed."""
    preferred_batch: int
    """Default batch size; larger batches are hardly faster."""

    def predict(self, images: UInt8Array) -> Prediction:
        """Return the model's outputs for RGB images, (N, H, W, 3) uint8.

        Raises:
            BackendError: The runtime failed on these images.
        """
        ...


NO_LABEL = 255
"""Label that an exported graph gives images whose scores are not finite. No class has it."""


def to_prediction(outputs: Mapping[str, npt.NDArray[Any]]) -> Prediction:
    """Return a graph's outputs, by name, as a `Prediction`; mask and confidence follow from logits if present.

    Raises:
        NonFiniteError: The scores of an image are not finite.
    """
    logits = outputs.get("logits")
    if logits is None:
        _refuse_not_finite((outputs["mask"] != NO_LABEL).all(axis=(1, 2)))
        return Prediction(outputs["mask"], outputs.get("confidence"), embedding=outputs.get("embedding"))
    _refuse_not_finite(np.isfinite(logits).all(axis=(1, 2, 3)))
    return Prediction(None, None, logits, outputs.get("embedding"))


def _refuse_not_finite(finite: npt.NDArray[np.bool_]) -> None:
    bad = np.flatnonzero(~finite)
    if bad.size:
        where = "" if finite.size == 1 else f" for image {bad[0] + 1} of {finite.size} in its batch"
        raise NonFiniteError(f"the model's scores are not finite (NaN or infinity){where}: no mask")


def checked_labels(prediction: Prediction, num_classes: int) -> tuple[UInt8Array, UInt8Array | None]:
    """Return mask and confidence of a prediction, (N, H, W) uint8 each, after a check of the labels.

    Raises:
        UnknownLabelError: A label is not below `num_classes`.
    """
    mask = prediction.mask
    refuse_unknown_labels(mask, num_classes)
    return mask, prediction.confidence


def refuse_unknown_labels(mask: UInt8Array, num_classes: int) -> None:
    """Check that all labels of a mask are below `num_classes`.

    Raises:
        UnknownLabelError: A label is not.
    """
    largest = int(mask.max(initial=0))
    if largest >= num_classes:
        raise UnknownLabelError(
            f"the model gave label {largest}, but it has {num_classes} classes, 0 to {num_classes - 1}: its "
            "description belongs to another graph: export it again"
        )


def fit_shape(images: UInt8Array, fixed: Sequence[int | None]) -> UInt8Array:
    """Return a batch, (N, H, W, 3), as a graph of fixed sides takes it: too few images are repeated.

    Args:
        images: The batch.
        fixed: Batch, height and width that the graph takes; None for any.

    Raises:
        BackendMemoryError: More images than its batch; a smaller one may fit.
        BackendError: Another height or width.
    """
    batch, height, width = fixed
    count = len(images)
    if (height or images.shape[1], width or images.shape[2]) != images.shape[1:3]:
        raise BackendError(
            f"{images.shape[2]}x{images.shape[1]} pixels: the model was exported for {width}x{height} alone "
            "(--shape): bring images to that size, or take a model without --shape"
        )
    if batch is None or batch == count:
        return images
    if count > batch:
        raise BackendMemoryError(f"{count} images at once: the model was exported for {batch} (--shape)")
    return np.concatenate([images, np.repeat(images[-1:], batch - count, axis=0)])
