"""Label propagation between pixels that look alike to a classifier."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from gmtool_training.probe import propagation
from gmtool_training.probe.bank import Bank
from gmtool_training.probe.head import Head, HiddenOptions, Rows, Scaling, fit_hidden, fit_linear
from gmtool_training.probe.propagation import can_propagate, find_neighbors, propagate, seconds_to_propagate
from gmtool_training.probe.self_training import PseudoOptions, labeled_rows, self_train
from torch import Tensor, nn

NUM_CLASSES = 2


def clusters(count: int, *, seed: int, known: bool = True) -> tuple[Bank, Tensor]:
    """Pixels of two classes, and their classes: two clusters each, of which only the first has labeled pixels.

    The second one lies at the border between the first ones, and on an axis of its own.
    """
    random = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 2
    second = (torch.arange(count) // 2 % 2).bool() & (not known)
    middle = torch.zeros(count, 3)
    middle[:, 0] = (2.0 * classes - 1.0) * torch.where(second, 0.3, 2.0)
    middle[second, 1 + classes[second]] = 3.0
    features = (middle + 0.6 * torch.randn(count, 3, generator=random)).half()
    labels = classes if known else torch.full_like(classes, 255)
    return Bank((features,), labels, torch.arange(count) // 4), classes


def head_of(last: Tensor) -> Head:
    """A head whose hidden layer keeps all axes, the two directions of each apart; `last` is (K, 6)."""
    first, second = nn.Linear(3, 6), nn.Linear(6, NUM_CLASSES)
    with torch.no_grad():
        first.weight.copy_(torch.cat([torch.eye(3), -torch.eye(3)]))
        first.bias.zero_()
        second.weight.copy_(last)
        second.bias.zero_()
    layers = nn.Sequential(first, nn.ReLU(), nn.Dropout(), second).eval()
    return Head(Scaling(torch.zeros(3), torch.ones(3)), layers.requires_grad_(False))


def head_of_first_axis() -> Head:
    """A head whose classes are the two sides of the first axis."""
    return head_of(2.0 * torch.tensor([[-1.0, 0, 0, 1, 0, 0], [1, 0, 0, -1, 0, 0]]))


def head_of_anything() -> Head:
    """A head that knows nothing."""
    return head_of(torch.randn(NUM_CLASSES, 6, generator=torch.Generator().manual_seed(0)))


def test_it_is_what_the_formula_says() -> None:
    """Against loops over pixels, in float64."""
    head = head_of_anything()
    labeled, _ = clusters(12, seed=0)
    unlabeled, _ = clusters(40, seed=1, known=False)
    start = head.probabilities(unlabeled.features)

    def hidden(features: Tensor) -> np.ndarray:
        sides = np.concatenate([features.double().numpy(), -features.double().numpy()], axis=1)
        rows = np.maximum(sides, 0)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    own = hidden(unlabeled.features[0])
    all_rows = np.concatenate([hidden(labeled.features[0]), own])
    images = np.concatenate([np.full(12, -1), unlabeled.images.numpy()])
    fixed = np.eye(NUM_CLASSES)[labeled.labels.numpy()]
    first = start.double().numpy()
    found = first
    for _ in range(10):
        values, after = np.concatenate([fixed, found]), np.empty_like(found)
        for pixel in range(40):
            others = np.flatnonzero(images != unlabeled.images[pixel].item())
            cosines = all_rows[others] @ own[pixel]
            best = np.argsort(-cosines)[:16]
            weights = np.exp(cosines[best] / 0.05)
            after[pixel] = 0.8 * (weights / weights.sum()) @ values[others[best]] + 0.2 * first[pixel]
        found = after
    torch.testing.assert_close(
        propagate(head, labeled, unlabeled, start).double(), torch.from_numpy(found), atol=1e-3, rtol=0
    )


def test_labels_follow_what_unlabeled_pixels_show() -> None:
    """A classifier that has not seen the second cluster of each class is wrong on a part of it."""
    labeled, _ = clusters(40, seed=0)
    unlabeled, truth = clusters(1200, seed=1, known=False)
    head = head_of_first_axis()
    before = head.probabilities(unlabeled.features)
    after = propagate(head, labeled, unlabeled, before)
    assert torch.allclose(after.sum(dim=1), torch.ones(1200), atol=1e-4)
    wrong_before, wrong_after = ((each.argmax(dim=1) != truth).float().mean() for each in (before, after))
    assert wrong_before > 0.1
    assert wrong_after < 0.8 * wrong_before


def test_no_pixel_of_its_own_image_is_a_neighbor() -> None:
    """It is as wrong as the pixel: a whole object is."""
    head = head_of_anything()
    labeled, _ = clusters(20, seed=0)
    unlabeled, _ = clusters(40, seed=1, known=False)
    found = find_neighbors(head, labeled.features[0], unlabeled.features[0], unlabeled.images, torch.arange(40))
    assert found.index.shape == (40, 16)
    images = torch.cat([torch.full((20,), -1), unlabeled.images])
    assert not (images[found.index] == unlabeled.images[:, None]).any()
    torch.testing.assert_close(found.weight.sum(dim=1), torch.ones(40))


def test_pixels_without_a_class_have_no_label_to_pass_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "LABELED_ANCHORS", 4)
    head = head_of_anything()
    labeled, _ = clusters(20, seed=0)
    labeled.labels[::2] = 255  # all of class 0
    unlabeled, _ = clusters(8, seed=1, known=False)
    alone = Bank(unlabeled.features, unlabeled.labels, torch.zeros(8, dtype=torch.long))
    found = propagate(head, labeled, alone, torch.full((8, NUM_CLASSES), 0.5))
    torch.testing.assert_close(found, torch.tensor([0.1, 0.9]).expand(8, 2))


def test_many_pixels_have_some_of_them_as_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time grows with the anchors: of many pixels every n-th is one."""
    monkeypatch.setattr(propagation, "UNLABELED_ANCHORS", 10)
    monkeypatch.setattr(propagation, "LABELED_ANCHORS", 10)
    asked: list[int] = []

    def counted(head: Head, labeled: Tensor, unlabeled: Tensor, images: Tensor, anchors: Tensor):  # type: ignore[no-untyped-def]
        asked.append(len(labeled) + len(anchors))
        return find_neighbors(head, labeled, unlabeled, images, anchors)

    monkeypatch.setattr(propagation, "find_neighbors", counted)
    head = head_of_anything()
    labeled, _ = clusters(45, seed=0)
    unlabeled, _ = clusters(1000, seed=1, known=False)
    propagate(head, labeled, unlabeled, head.probabilities(unlabeled.features))
    assert asked == [12 + 10]


def test_the_time_is_told_for_all_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that takes 1 ms for a pixel."""
    now = 0.0

    def slow(*_: object, count: int) -> None:
        nonlocal now
        now += 0.001 * count

    monkeypatch.setattr(propagation, "find_neighbors", slow)
    monkeypatch.setattr("gmtool_training.probe.propagation.time.monotonic", lambda: now)
    assert seconds_to_propagate(head_of_anything(), torch.zeros(10, 3), torch.zeros(9000, 3)) == pytest.approx(9)
    assert seconds_to_propagate(head_of_anything(), torch.zeros(10, 3), torch.zeros(90, 3)) == pytest.approx(0.09)


def test_self_training_begins_with_it() -> None:
    """The first head learns what was passed on, and the last one is less often wrong."""
    labeled, _ = clusters(40, seed=0)
    unlabeled, truth = clusters(1200, seed=1, known=False)
    options = HiddenOptions(channels=64, steps=200, batch=64, lr=1e-2)
    start, pseudo = head_of_first_axis(), PseudoOptions(NUM_CLASSES, 0.6, balance=0.0, weight=0.5)
    found = start.probabilities(unlabeled.features)
    passed_on = propagate(start, labeled, unlabeled, found)
    wrong = []
    for passes, first in ((False, found), (True, passed_on)):
        random = np.random.default_rng(0)
        learned: list[Tensor] = []

        def fit(rows: Sequence[Rows], _: Head | None) -> Head:
            learned.append(rows[1].targets)  # noqa: B023
            return fit_hidden(rows, options=options, random=random)  # noqa: B023

        trained = self_train(fit, labeled, unlabeled, pseudo, rounds=2, start=start, propagation=passes)
        counts = learned[0].sum(dim=1) > 0
        assert (learned[0][counts].argmax(dim=1) == first[counts].argmax(dim=1)).all()
        predicted = trained.heads[-1].probabilities(unlabeled.features).argmax(dim=1)
        wrong.append(float((predicted != truth).float().mean()))
    assert wrong[1] < 0.7 * wrong[0]


def test_a_linear_classifier_has_no_space_of_its_own() -> None:
    labeled, _ = clusters(40, seed=0)
    assert not can_propagate(fit_linear([labeled_rows(labeled, NUM_CLASSES)]))
    assert can_propagate(head_of_anything())
