"""Gain on labeled images kept out, and its standard error."""

import numpy as np
import pytest
import torch
from gmtool_training.probe.bank import Bank
from gmtool_training.probe.gain import Gain, confusions_kept_out, gain_of
from gmtool_training.probe.head import fit_linear
from gmtool_training.probe.judge import Judged, Tried
from gmtool_training.probe.self_training import (
    PseudoOptions,
    Reliability,
    folds_of,
    labeled_rows,
    mean_iou,
    pixel_confusion,
)


def test_a_gain_is_used_if_it_is_above_its_standard_error() -> None:
    assert Gain(0.02, 0.01).is_clear
    assert not Gain(0.01, 0.02).is_clear
    assert not Gain(-0.02, 0.01).is_clear
    assert not Gain(0.0, 0.0).is_clear
    assert Gain(0.03, 0.01).is_certain and not Gain(0.015, 0.01).is_certain


def test_the_standard_error_is_that_of_leaving_each_group_out() -> None:
    random = np.random.default_rng(0)
    before, after = (torch.from_numpy(random.integers(1, 50, (6, 3, 3))).double() for _ in range(2))
    gain = gain_of(before, after)
    left_out = [
        mean_iou(torch.cat([after[:i], after[i + 1 :]]).sum(dim=0))
        - mean_iou(torch.cat([before[:i], before[i + 1 :]]).sum(dim=0))
        for i in range(6)
    ]
    assert gain.points == pytest.approx(mean_iou(after.sum(dim=0)) - mean_iou(before.sum(dim=0)))
    assert gain.error == pytest.approx(np.sqrt(5 / 6 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2)))


def test_the_same_gain_in_each_image_is_certain_and_one_of_a_single_image_is_not() -> None:
    wrong, right = torch.tensor([[6.0, 4.0], [4.0, 6.0]]), torch.tensor([[9.0, 1.0], [1.0, 9.0]])
    before = wrong.expand(10, 2, 2)
    assert gain_of(before, right.expand(10, 2, 2)).error == pytest.approx(0, abs=1e-9)
    single = before.clone()
    single[0] = right
    assert gain_of(before, single).points > 0 and not gain_of(before, single).is_clear


def test_each_image_is_scored_by_the_head_that_has_not_seen_it() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    features = (torch.eye(3)[labels] * 2 + torch.randn(120, 3, generator=random)).half()
    bank = Bank((features, -features), labels, torch.arange(120) // 10)
    folds = folds_of(bank, 3, np.random.default_rng(0))
    heads = [fit_linear([labeled_rows(bank.rows(~kept_out), 3)]) for kept_out in folds]
    found = confusions_kept_out(heads, bank, folds, 3)
    expected = sum(pixel_confusion(head, bank.rows(kept), 3) for head, kept in zip(heads, folds, strict=True))
    assert found.shape == (12, 3, 3) and found.sum(dim=(1, 2)).tolist() == [10.0] * 12
    assert torch.equal(found.sum(dim=0), torch.as_tensor(expected).double())


def test_unlabeled_images_are_used_if_each_way_helps_or_one_threshold_helps_much() -> None:
    clear, more, certain, unclear = Gain(0.03, 0.02), Gain(0.05, 0.04), Gain(0.02, 0.009), Gain(0.04, 0.06)

    def judged(*gains: Gain) -> Judged:
        """Shares of each class, if there are two gains, then one threshold."""
        thresholds = (None, 0.9)[-len(gains) :] if gains else ()
        options = [PseudoOptions(3, threshold, 0.5, 0.5) for threshold in thresholds]
        tried = tuple(Tried(*each) for each in zip(options, gains, strict=True))
        return Judged("linear", Reliability((0.9,), (0.5,), (0.95,)), 0.5, tried)

    assert judged(more, clear).helps and judged(more, clear).score == pytest.approx(0.55)
    assert judged(clear, more).score == pytest.approx(0.55)
    assert judged(clear).helps and judged(clear).score == pytest.approx(0.53)
    # The threshold alone is enough if that is certain, and is what is taken
    assert judged(unclear, certain).helps and judged(unclear, certain).score == pytest.approx(0.52)
    assert not judged(unclear, clear).helps and judged(unclear, clear).score == 0.5
    assert not judged(certain, unclear).helps and judged(certain, unclear).score == 0.5
    assert not judged(unclear, unclear).helps and judged(unclear, unclear).trained == pytest.approx(0.54)
    assert not judged().helps and judged().trained is None and judged().score == 0.5
