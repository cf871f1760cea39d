"""Outputs of a model: what follows from logits is computed when it is read, and then once."""

import numpy as np
import pytest
import torch
from gmtool_serving.backends.base import Prediction, to_prediction

LOGITS = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32) * 4


def test_mask_and_confidence_of_logits_are_torchs() -> None:
    prediction = to_prediction({"logits": LOGITS})
    probabilities = torch.from_numpy(LOGITS).softmax(dim=1)
    assert np.array_equal(prediction.mask, probabilities.argmax(dim=1).numpy())
    assert prediction.confidence is not None
    expected = torch.round(probabilities.amax(dim=1) * 255).numpy()
    assert np.abs(prediction.confidence.astype(int) - expected).max() <= 1
    assert prediction.mask is prediction.mask  # computed once


def test_nothing_is_computed_of_logits_that_are_only_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "exp", lambda *_, **__: pytest.fail("the confidence was computed"))
    prediction = to_prediction({"logits": LOGITS})
    assert prediction.logits is LOGITS
    assert "mask" not in vars(prediction)


def test_a_given_mask_is_kept() -> None:
    mask = np.zeros((1, 2, 3), np.uint8)
    prediction = Prediction(mask, None)
    assert prediction.mask is mask
    assert prediction.confidence is None
