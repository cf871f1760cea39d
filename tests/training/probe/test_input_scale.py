"""The input scale that labeled images kept out choose."""

import numpy as np
import pytest
import torch
from gmtool_training.probe.bank import Bank
from gmtool_training.probe.gain import gain_of
from gmtool_training.probe.input_scale import SCALE_PARTITIONS, _linear_kind, best_scale
from torch import Tensor

NUM_CLASSES = 3


def features(spread: float, *, seed: int = 0) -> Bank:
    """30 pixels of each of 12 images: three points, and noise of this spread around them."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (360,), generator=random)
    noise = torch.randn(360, 5, generator=random)
    rows = 2 * torch.eye(NUM_CLASSES, 5)[labels] + spread * noise
    return Bank((rows.half(),), labels, torch.arange(360) // 30)


def confusions(bank: Bank) -> Tensor:
    return _linear_kind(bank, NUM_CLASSES, np.random.default_rng(0), torch.device("cpu")).confusions


def test_a_larger_scale_is_taken_where_it_is_better() -> None:
    blurred, sharp = confusions(features(2.0)), confusions(features(1.0))
    assert gain_of(blurred, sharp).ratio > 2
    assert best_scale({1.0: blurred, 2.0: sharp}) == 2.0
    assert best_scale({1.0: sharp, 2.0: blurred}) == 1.0
    assert best_scale({1.0: sharp, 2.0: sharp}) == 1.0, "it costs four times as much"
    assert best_scale({0.5: blurred, 1.0: sharp, 2.0: sharp}) == 1.0


def test_every_image_is_kept_out_as_often_as_parted() -> None:
    bank = features(1.0)
    found = confusions(bank)
    assert found.shape == (12, NUM_CLASSES, NUM_CLASSES)
    assert found.sum(dim=(1, 2)).tolist() == 12 * [30 * SCALE_PARTITIONS]


@pytest.mark.parametrize(
    ("gains", "expected"), [((4, 4, 4, 4), 2.0), ((12, 6, -3, -3), 2.0), ((14, -4, -4, -4), 1.0)]
)
def test_a_gain_counts_by_its_standard_error_over_the_images(gains: tuple[int, ...], expected: float) -> None:
    """One image that gains a lot tells nothing of others."""
    before, after = (torch.zeros(len(gains), 2, 2, dtype=torch.float64) for _ in range(2))
    for matrices, more in ((before, (0, 0, 0, 0)), (after, gains)):
        for image, each in enumerate(more):
            matrices[image] = torch.tensor([[60.0 + each, 40.0 - each], [40.0 - each, 60.0 + each]])
    assert best_scale({1.0: before, 2.0: after}) == expected
