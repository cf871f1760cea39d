"""Kinds of classifiers, judged by labels kept out, and the one that is taken."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from gmtool_training.probe.bank import Bank
from gmtool_training.probe.gain import gain_of
from gmtool_training.probe.head import Head, Rows, fit_linear
from gmtool_training.probe.judge import judge
from gmtool_training.probe.kinds import Kind, fit_kinds, kind_to_take
from gmtool_training.probe.self_training import Fit, folds_of, mean_iou
from torch import Tensor

from gmtool.config import ProbeConfig

WRONG, RIGHT = torch.tensor([[6.0, 4.0], [4.0, 6.0]]), torch.tensor([[9.0, 1.0], [1.0, 9.0]])


@pytest.mark.parametrize(("right_images", "taken"), [(0, "hidden layer"), (1, "hidden layer"), (10, "linear")])
def test_a_linear_classifier_is_taken_if_it_is_better_by_more_than_chance(right_images: int, taken: str) -> None:
    linear = torch.cat([RIGHT.expand(right_images, 2, 2), WRONG.expand(10 - right_images, 2, 2)])
    kinds = [kind("hidden layer", WRONG.expand(10, 2, 2)), kind("linear", linear)]
    assert kind_to_take(kinds).name == taken
    if right_images == 1:  # a gain that rests on a single image
        assert kinds[1].miou > kinds[0].miou and gain_of(kinds[0].confusions, linear).ratio < 1


def test_the_better_hidden_layer_and_a_single_kind_are_taken() -> None:
    hidden, linear = kind("hidden layer", RIGHT.expand(10, 2, 2)), kind("linear", WRONG.expand(10, 2, 2))
    assert kind_to_take([hidden, linear]) is hidden and kind_to_take([linear]) is linear


def test_self_training_is_judged_with_the_kind_that_is_taken_alone(capsys: pytest.CaptureFixture[str]) -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    features = (torch.eye(3)[labels] * 2 + torch.randn(120, 3, generator=random)).half()
    labeled = Bank((features,), labels, torch.arange(120) // 10)
    unlabeled = Bank((features,), torch.full((120,), 255), torch.arange(120) // 10)
    folds = folds_of(labeled, 3, np.random.default_rng(0))
    fitted: list[str] = []

    def counted(name: str, l2: float) -> Fit:
        def fit(rows: Sequence[Rows], start: Head | None) -> Head:
            fitted.append(name)
            return fit_linear(rows, l2=l2)

        return fit

    fits = {"good": counted("good", 1e-3), "useless": counted("useless", 1e3)}
    kinds = fit_kinds(fits, labeled, folds, 3)
    assert fitted == 3 * ["good"] + 3 * ["useless"] and [len(each.heads) for each in kinds] == [3, 3]
    taken = kind_to_take(kinds)
    assert taken.name == "good" and taken.miou == pytest.approx(mean_iou(taken.confusions.sum(dim=0)))
    judged = judge(taken, labeled, unlabeled, 3, ProbeConfig())
    assert judged.kind is taken and len(judged.tried) == 2
    assert fitted[6:] == 6 * ["good"], "once a fold for each of two ways to choose pseudo labels"
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("good: ") and lines[0].endswith(" % on labeled images kept out")
    assert lines[1].startswith("useless: ") and " kept out, -" in lines[1]
    assert lines[1].endswith(" points beside the good")
    assert lines[2].startswith("good, a round with unlabeled images: ")


def kind(name: str, confusions: Tensor) -> Kind:
    """Return a kind with the confusions of ten images."""
    return Kind(name, lambda rows, start: fit_linear(rows), (), (), confusions)
