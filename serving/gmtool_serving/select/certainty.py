"""Certainty of each pixel, from the confidence or the logits of an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from gmtool.artifact.spec import OutputName
from gmtool.errors import ConfigError
from gmtool.images import UInt8Array
from gmtool_serving.backends.base import Backend, Prediction

CertaintyKind = Literal["confidence", "entropy", "margin", "bald"]
Strategy = Literal["mixed", "entropy", "margin", "bald", "coreset", "kmeans++", "random"]
NEED_LOGITS = ("entropy", "margin", "bald")


def default_strategy(outputs: Sequence[OutputName]) -> Strategy:
    """Return the strategy for a model with these outputs: the best on MSRC-v2 and CamVid (docs/labeling.md)."""
    return "coreset" if "embedding" in outputs else "mixed"


def certainty_kind(strategy: Strategy, backend: Backend) -> CertaintyKind:
    """Return the certainty that a strategy computes with a model.

    Raises:
        ConfigError: The model has not the output that the strategy needs.
    """
    outputs = backend.spec.outputs
    if strategy in NEED_LOGITS and "logits" not in outputs:
        raise ConfigError(
            f"--strategy {strategy} needs logits, but {backend.model} has {', '.join(outputs)}: "
            "export it with --output logits, or use --strategy mixed"
        )
    if strategy == "margin":
        return "margin"
    if strategy == "bald":
        return "bald"
    if strategy == "mixed" and not {"confidence", "logits"} & set(outputs):
        raise ConfigError(
            f"--strategy mixed needs confidence, but the only output of {backend.model} is "
            f"{', '.join(outputs)}: export it with --output mask+confidence, or use --strategy coreset"
        )
    return "entropy" if strategy in ("entropy", "mixed") and "logits" in outputs else "confidence"


class CertaintyBackend:
    """A model whose `confidence` is the certainty of a strategy, so that the prediction stages compute it.

    Args:
        backend: A loaded model.
        kind: `confidence`: largest probability. `entropy`: 1 minus the entropy over its maximum. `margin`:
            largest minus second largest probability. `bald`: 1 minus the Jensen-Shannon distance between the
            probabilities of the image and of its mirror image, which takes two passes. All times 255.
    """

    def __init__(self, backend: Backend, kind: CertaintyKind) -> None:
        self._backend, self._kind = backend, kind
        self.spec, self.description = backend.spec, backend.description
        self.model, self.model_sha256 = backend.model, backend.model_sha256
        self.device, self.lanes, self.preferred_batch = backend.device, backend.lanes, backend.preferred_batch

    def predict(self, images: UInt8Array) -> Prediction:
        """Return mask and certainty, (N, H, W) uint8, of RGB images, (N, H, W, 3) uint8."""
        prediction = self._backend.predict(images)
        if self._kind == "confidence" or prediction.logits is None:
            return Prediction(prediction.mask, prediction.confidence, embedding=prediction.embedding)
        # One image at a time: the probabilities of a batch would take several times the memory of its logits
        if self._kind == "bald":
            mirrored = self._backend.predict(np.ascontiguousarray(images[:, :, ::-1])).logits
            assert mirrored is not None
            pairs = zip(prediction.logits, mirrored[..., ::-1], strict=True)
            certainty = np.stack([np.rint(255 * (1 - disagreement(one, other))) for one, other in pairs])
        else:
            formula = entropy_certainty if self._kind == "entropy" else margin
            certainty = np.stack([np.rint(255 * formula(logits)) for logits in prediction.logits])
        return Prediction(prediction.mask, certainty.astype(np.uint8), embedding=prediction.embedding)


def disagreement(logits: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the Jensen-Shannon distance between the probabilities of two predictions, (H, W) in [0, 1].

    Its square, over log 2, is the mutual information of label and prediction in an ensemble of these two: BALD
    (Houlsby et al. 2011). The root keeps small values apart, in steps of 1/255.

    Args:
        logits: (C, H, W).
        others: The same, of the other prediction.
    """
    first, second = _log_probabilities(logits), _log_probabilities(others)
    mean = np.logaddexp(first, second) - np.log(np.float32(2))
    divergence = (np.exp(first) * (first - mean) + np.exp(second) * (second - mean)).sum(axis=0) / 2
    distance: npt.NDArray[np.float32] = np.sqrt((divergence / np.log(np.float32(2))).clip(0, 1))
    return distance


def _log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted = logits - logits.max(axis=0)
    result: npt.NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=0))
    return result


def entropy_certainty(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return 1 - H / log C, (H, W) in [0, 1], with the entropy H of the probabilities; logits (C, H, W)."""
    shifted = logits - logits.max(axis=0)
    weights = np.exp(shifted)
    total = weights.sum(axis=0)
    entropy = np.log(total) - (weights * shifted).sum(axis=0) / total
    certainty: npt.NDArray[np.float32] = (1 - entropy / np.log(len(logits))).clip(0, 1)
    return certainty


def margin(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the largest minus the second largest probability, (H, W) in [0, 1]; logits (C, H, W)."""
    second, largest = np.partition(logits, -2, axis=0)[-2:]
    total = np.exp(logits - largest).sum(axis=0)
    difference: npt.NDArray[np.float32] = (1 - np.exp(second - largest)) / total
    return difference
