"""Gain on labeled images kept out, and its standard error."""

import numpy as np
import pytest
import torch
from gmtool_training.probe.bank import Bank
from gmtool_training.probe.gain import Gain, confusions_kept_out, gain_of
from gmtool_training.probe.head import fit_linear
from gmtool_training.probe.judge import Judged
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


def test_unlabeled_images_are_used_if_they_help_whichever_pseudo_labels_count() -> None:
    measured, options = Reliability((0.9,), (0.5,), (0.95,)), PseudoOptions(3, None, 0.5, 0.5)
    clear, unclear = Gain(0.03, 0.01), Gain(0.004, 0.006)

    def judged(*gains: Gain) -> Judged:
        tried = tuple((str(place), gain) for place, gain in enumerate(gains))
        return Judged("linear", options, measured, 0.5, gains[0], tried)

    assert judged(clear, clear).helps and judged(clear).helps
    assert judged(clear, clear).score == pytest.approx(0.53)
    assert not judged(clear, unclear).helps and not judged(unclear, clear).helps
    assert judged(clear, unclear).score == 0.5  # labels alone are what is used
