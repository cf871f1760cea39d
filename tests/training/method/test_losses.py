import math

import pytest
import torch
import torch.nn.functional as F
from gmtool_training.method.losses import (
    StepLosses,
    cross_entropy,
    image_classification,
    omega_at,
    squared_difference,
)


def test_cross_entropy_is_torchs_mean_over_pixels_that_count() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 5, 6), dtype=torch.uint8)
    masks[0, :2] = 255
    expected = F.cross_entropy(logits, masks.long(), ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, masks, ignore_index=255), expected)


def test_all_ignored_is_zero_and_not_nan() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 2, 2), 255, dtype=torch.uint8), ignore_index=255)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None and logits.grad.abs().max() == 0


def test_image_classification_asks_which_foreground_classes_occur() -> None:
    masks = torch.tensor([[[0, 2], [255, 0]], [[1, 1], [1, 1]]], dtype=torch.uint8)
    logits = torch.tensor([[0.3, -0.2], [1.0, 0.5]])
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    torch.testing.assert_close(image_classification(logits, masks, foreground=(1, 2)), expected)


def test_squared_difference_is_a_mean_over_batch_classes_and_pixels() -> None:
    assert squared_difference(torch.zeros(2, 3, 4, 5), torch.full((2, 3, 4, 5), 0.5)).item() == 0.25


def test_total_is_the_single_sum_of_all_terms() -> None:
    one = torch.tensor(1.0)
    losses = StepLosses(one, 2 * one, 3 * one, 4 * one, omega=10.0)
    assert losses.total.item() == 46.0


def test_omega_is_zero_in_warm_up_and_then_rises_to_its_maximum() -> None:
    def omega(iteration: int) -> float:
        return omega_at(iteration, iterations=1000, warmup=50, ramp_fraction=0.1, omega_max=30)

    assert omega(0) == omega(49) == 0
    assert omega(50) == pytest.approx(30 * math.exp(-5))
    assert omega(50 + 47) == pytest.approx(30 * math.exp(-5 * (1 - 47 / 95) ** 2))
    assert omega(145) == omega(999) == 30
    values = [omega(iteration) for iteration in range(50, 146)]
    assert values == sorted(values)
    assert omega_at(0, iterations=10, warmup=0, ramp_fraction=0, omega_max=5) == 5
