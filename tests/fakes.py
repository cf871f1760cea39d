"""A model that needs no runtime: its masks follow from single pixels, and it does what a test asks of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from gmtool_serving.backends.base import Prediction, to_prediction

from gmtool.artifact.spec import ArtifactSpec, ModelProvenance, OutputName
from gmtool.classes import ClassSet
from gmtool.images import UInt8Array

CLASSES = ClassSet(("dark", "middle", "bright"), ((0, 0, 0), (90, 90, 90), (250, 250, 250)), (0, 1, 2))


class FakeBackend:
    """Class by the red of a pixel: below 85, below 170, or above."""

    description = "pixels"
    model = "fake.onnx"
    device: Literal["cpu", "cuda"] = "cpu"
    lanes = 1
    preferred_batch = 1

    def __init__(
        self,
        *,
        seconds: float = 0.0,
        model_sha256: str = "0" * 64,
        check: Callable[[UInt8Array], None] = lambda _: None,
        outputs: tuple[OutputName, ...] = ("mask",),
    ) -> None:
        self.spec = ArtifactSpec(
            classes=CLASSES,
            precision="fp32",
            encoder="none",
            output_stride=1,
            attention_stride=None,
            outputs=outputs,
            provenance=ModelProvenance("run", 1, None, "0" * 64, "0", "0", "2026-01-01"),
        )
        self.model_sha256 = model_sha256
        self.batches: list[tuple[int, ...]] = []
        """Shapes of the batches so far."""
        self._seconds, self._check = seconds, check

    def predict(self, images: UInt8Array) -> Prediction:
        """Return the outputs of the spec after the wait and the check of the test."""
        self.batches.append(images.shape)
        time.sleep(self._seconds)
        self._check(images)
        mask = (images[..., 0] // 85).clip(0, 2)
        logits = -np.abs(
            images[..., 0][:, None].astype(np.float32) / 85 - np.arange(3, dtype=np.float32)[:, None, None] - 0.497
        )
        outputs = {"mask": mask, "confidence": images[..., 0], "logits": logits}
        return to_prediction({name: outputs[name] for name in self.spec.outputs})
