"""Certainty of each pixel, from the confidence or the logits of an exported model."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from gmtool.errors import ConfigError
from gmtool.images import UInt8Array
from gmtool_serving.backends.base import Backend, Prediction

CertaintyKind = Literal["confidence", "entropy", "margin"]
Strategy = Literal["default", "entropy", "margin", "coreset", "random"]


def certainty_kind(strategy: Strategy, backend: Backend) -> CertaintyKind:
    """Return the certainty that a strategy computes with a model.

    Raises:
        ConfigError: The model has not the output that the strategy needs.
    """
    outputs = backend.spec.outputs
    if strategy in ("entropy", "margin") and "logits" not in outputs:
        raise ConfigError(
            f"--strategy {strategy} needs logits, but {backend.model} has {', '.join(outputs)}: "
            "export it with --output logits, or use --strategy default"
        )
    if strategy == "margin":
        return "margin"
    if strategy == "default" and not {"confidence", "logits"} & set(outputs):
        raise ConfigError(
            f"--strategy default needs confidence, but the only output of {backend.model} is "
            f"{', '.join(outputs)}: export it with --output mask+confidence, or use --strategy coreset"
        )
    return "entropy" if strategy in ("entropy", "default") and "logits" in outputs else "confidence"


class CertaintyBackend:
    """A model whose `confidence` is the certainty of a strategy, so that the prediction stages compute it.

    Args:
        backend: A loaded model.
        kind: `confidence`: largest probability. `entropy`: 1 minus the entropy over its maximum. `margin`:
            largest minus second largest probability. All times 255.
    """

    def __init__(self, backend: Backend, kind: CertaintyKind) -> None:
        self._backend, self._kind = backend, kind
        self.spec, self.description = backend.spec, backend.description
        self.model, self.model_sha256 = backend.model, backend.model_sha256
        self.preferred_batch = backend.preferred_batch

    def predict(self, images: UInt8Array) -> Prediction:
        """Return mask and certainty, (N, H, W) uint8, of RGB images, (N, H, W, 3) uint8."""
        prediction = self._backend.predict(images)
        if self._kind == "confidence" or prediction.logits is None:
            return Prediction(prediction.mask, prediction.confidence)
        # One image at a time: the probabilities of a batch would take several times the memory of its logits
        formula = _entropy_certainty if self._kind == "entropy" else _margin
        certainty = np.stack([np.rint(255 * formula(logits)) for logits in prediction.logits])
        return Prediction(prediction.mask, certainty.astype(np.uint8))


def _entropy_certainty(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return 1 - H / log C, (H, W) in [0, 1], with the entropy H of the probabilities; logits (C, H, W)."""
    shifted = logits - logits.max(axis=0)
    weights = np.exp(shifted)
    total = weights.sum(axis=0)
    entropy = np.log(total) - (weights * shifted).sum(axis=0) / total
    certainty: npt.NDArray[np.float32] = (1 - entropy / np.log(len(logits))).clip(0, 1)
    return certainty


def _margin(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the largest minus the second largest probability, (H, W) in [0, 1]; logits (C, H, W)."""
    second, largest = np.partition(logits, -2, axis=0)[-2:]
    total = np.exp(logits - largest).sum(axis=0)
    margin: npt.NDArray[np.float32] = (1 - np.exp(second - largest)) / total
    return margin
