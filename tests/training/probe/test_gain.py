"""Gain on labeled images kept out, and its standard error."""

import numpy as np
import pytest
import torch
from gmtool_training.probe.bank import Bank
from gmtool_training.probe.gain import Gain, confusions_kept_out, gain_of
from gmtool_training.probe.head import fit_linear
from gmtool_training.probe.judge import MIN_MEAN_RATIO, Judged, Tried
from gmtool_training.probe.kinds import Kind, fit_kinds
from gmtool_training.probe.self_training import (
    PseudoOptions,
    Reliability,
    folds_of,
    folds_of_partitions,
    labeled_rows,
    mean_iou,
    pixel_confusion,
)


def test_the_ratio_of_a_gain_is_that_to_its_standard_error() -> None:
    assert Gain(0.03, 0.02).ratio == pytest.approx(1.5) and Gain(-0.02, 0.01).ratio == pytest.approx(-2)
    assert Gain(0.01, 0.0).ratio == np.inf and Gain(-0.01, 0.0).ratio == -np.inf
    assert Gain(0.0, 0.0).ratio == Gain(0.0, 0.01).ratio == 0, "the same classifier again says nothing"


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
    assert gain_of(before, single).points > 0 and gain_of(before, single).ratio < MIN_MEAN_RATIO


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


def test_several_partitions_count_together() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    features = (torch.eye(3)[labels] * 2 + torch.randn(120, 3, generator=random)).half()
    bank = Bank((features,), labels, torch.arange(120) // 10)
    folds = folds_of_partitions(bank, 2, np.random.default_rng(0))
    assert len(folds) == 6
    assert not torch.equal(torch.stack(folds[:3]), torch.stack(folds[3:]))
    heads = [fit_linear([labeled_rows(bank.rows(~kept_out), 3)]) for kept_out in folds]
    each = [confusions_kept_out(heads[part], bank, folds[part], 3) for part in (slice(3), slice(3, 6))]
    (kind,) = fit_kinds({"linear": lambda rows, start: fit_linear(rows)}, bank, folds, 3)
    assert kind.miou == pytest.approx(mean_iou((each[0] + each[1]).sum(dim=0)))
    # Twice the same tells no more than once
    after = each[1]
    assert gain_of(2 * each[0], 2 * after).ratio == pytest.approx(gain_of(each[0], after).ratio)


@pytest.mark.parametrize(
    ("shares", "threshold", "helps"),
    [
        # Points and standard errors of real runs, and what the validation images said of them
        (Gain(0.043, 0.025), Gain(0.017, 0.018), True),  # MSRC-v2: 84 to 87 % with them in other runs
        (Gain(0.024, 0.008), Gain(0.014, 0.009), True),  # MSRC-v2: 77 and 84 %
        (Gain(0.015, 0.016), Gain(0.028, 0.013), True),  # generated images: 87 and 89.5 %, by the threshold
        (Gain(0.034, 0.024), Gain(0.037, 0.021), True),  # MSRC-v2, ResNet-50: 52 and 61 %
        (Gain(0.004, 0.009), Gain(0.008, 0.005), False),  # CamVid: 64.2 and 63.0 %
        (Gain(0.015, 0.006), Gain(0.004, 0.006), False),  # CamVid, an earlier program: 64.8 and 62.0 %
        (Gain(-0.004, 0.006), Gain(0.002, 0.004), False),  # CamVid
    ],
)
def test_unlabeled_images_are_used_if_both_ways_say_so(shares: Gain, threshold: Gain, helps: bool) -> None:
    assert judged_by(shares, threshold).helps is helps


@pytest.mark.parametrize(
    ("shares", "threshold", "taken"),
    [
        (Gain(0.041, 0.016), Gain(0.027, 0.009), None),  # MSRC-v2: the other one is surer
        (Gain(0.046, 0.027), Gain(0.018, 0.012), None),  # MSRC-v2
        (Gain(0.015, 0.016), Gain(0.014, 0.005), 0.9),
        (Gain(0.015, 0.016), Gain(0.028, 0.013), 0.9),  # generated images
    ],
)
def test_the_largest_gain_less_its_error_is_taken(shares: Gain, threshold: Gain, taken: float | None) -> None:
    way = judged_by(shares, threshold).taken
    assert way is not None and way.options.threshold == taken


@pytest.mark.parametrize(
    ("shares", "threshold", "helps"),
    [
        # Three partitions together, and four rounds on the validation images
        (Gain(0.045, 0.015), Gain(0.031, 0.011), True),  # MSRC-v2: 75.7 and 84.1 %
        (Gain(0.025, 0.014), Gain(0.019, 0.008), True),  # MSRC-v2, other labels: 77.3 and 81.5 %
        (Gain(0.001, 0.015), Gain(0.025, 0.006), True),  # generated images
        (Gain(-0.003, 0.004), Gain(0.007, 0.003), False),  # CamVid, other labels: 63.4 and 62.7 %
        (Gain(-0.003, 0.006), Gain(0.006, 0.006), False),  # CamVid
    ],
)
def test_with_several_partitions_no_way_may_lose(shares: Gain, threshold: Gain, helps: bool) -> None:
    assert judged_by(shares, threshold, partitions=3).helps is helps


def test_a_single_way_is_judged_alike_and_without_unlabeled_images_there_is_none() -> None:
    assert judged_by(Gain(0.03, 0.02)).helps and not judged_by(Gain(0.02, 0.02)).helps
    assert not judged_by().helps and judged_by().taken is None


def judged_by(*gains: Gain, partitions: int = 1) -> Judged:
    """Shares of each class, if there are two gains, then one threshold."""
    thresholds = (None, 0.9)[-len(gains) :] if gains else ()
    options = [PseudoOptions(3, threshold, 0.5, 0.5) for threshold in thresholds]
    tried = tuple(Tried(*each) for each in zip(options, gains, strict=True))
    folds = 3 * partitions * (torch.ones(4, dtype=torch.bool),)
    kind = Kind("linear", lambda rows, start: fit_linear(rows), folds, (), torch.ones(1, 3, 3))
    return Judged(kind, Reliability((0.9,), (0.5,), (0.95,)), tried)
