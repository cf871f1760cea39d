import numpy as np
import pytest
import torch
from gmtool_training.method.mixing import (
    decouple,
    draw_lambda,
    mix_pairs,
    nearest_others,
    nearest_partners,
    random_others,
    random_partners,
)

from gmtool.config import MethodConfig


def probabilities(seed: int) -> torch.Tensor:
    return torch.softmax(torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_nearest_partner_is_the_one_with_the_smallest_distance() -> None:
    keys = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    queries = torch.tensor([[9.0, 1.0], [1.0, 1.0], [8.0, 0.0], [0.0, 30.0]])
    assert nearest_partners(queries, keys).tolist() == [1, 0, 1, 2]


def test_nearest_other_is_never_the_image_itself() -> None:
    features = torch.tensor([[0.0], [1.0], [5.0], [5.5]])
    assert nearest_others(features).tolist() == [1, 0, 3, 2]
    assert nearest_others(torch.zeros(2, 3)).tolist() == [1, 0]


def test_random_partners_cover_all_and_others_are_never_the_image_itself() -> None:
    random = np.random.default_rng(0)
    drawn = torch.cat([random_partners(6, 3, random) for _ in range(20)])
    assert set(drawn.tolist()) == {0, 1, 2}
    for _ in range(20):
        assert (random_others(5, random) != torch.arange(5)).all()


@pytest.mark.parametrize("bound", [0.5, 0.3, 0.1])
def test_lambda_is_uniform_below_its_bound(bound: float) -> None:
    random = np.random.default_rng(0)
    drawn = np.array([draw_lambda(random, bound=bound) for _ in range(4000)])
    assert drawn.min() >= 0
    assert drawn.max() < bound
    counts, _ = np.histogram(drawn, bins=4, range=(0, bound))
    assert counts.min() > 800


def test_the_labeled_image_is_the_minority_part() -> None:
    labeled, unlabeled = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    assert mix_pairs(labeled, unlabeled, 0.2).flatten().tolist() == pytest.approx([0.2] * 12)


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.37, 0.49])
def test_ideal_mixing_decouples_as_the_paper_says(lam: float) -> None:
    """docs/method.md, section 2.7: soft gives (1 - lam) M_u, hard (1 - lam)(M_u - M_l), normalised soft M_u."""
    m_l, m_u = probabilities(1), probabilities(2)
    ideal = lam * m_l + (1 - lam) * m_u
    soft = decouple(ideal, m_l, lam, method=MethodConfig(decoupling="soft"))
    hard = decouple(ideal, m_l, lam, method=MethodConfig(decoupling="hard"))
    normalised = decouple(ideal, m_l, lam, method=MethodConfig(decoupling="soft", normalize=True))
    torch.testing.assert_close(soft, (1 - lam) * m_u)
    torch.testing.assert_close(hard, (1 - lam) * (m_u - m_l))
    torch.testing.assert_close(normalised, m_u)
    torch.testing.assert_close(normalised.sum(dim=1), torch.ones(3, 4, 6))
