"""The bootstrap against a plain loop over resamples, and against SciPy's."""

import numpy as np
import pytest
from scipy import stats

from gmtool.report.image_scores import ImageScores, ScoreCollector, miou_interval, paired_difference
from gmtool.report.metrics import mean_iou


def images(seed: int, count: int = 12, right: float = 0.8) -> tuple[ImageScores, list[np.ndarray]]:
    """Random confusion matrices of 4 classes, of which the last is rare."""
    random = np.random.default_rng(seed)
    collector, matrices = ScoreCollector(4), []
    for index in range(count):
        truth = np.random.default_rng(index).choice(
            4, 500, p=[0.5, 0.3, 0.2 - 0.05 * (index == 3), 0.05 * (index == 3)]
        )
        wrong = random.random(500) > right
        prediction = np.where(wrong, random.integers(0, 3, 500), truth)
        matrix = np.bincount(truth * 4 + prediction, minlength=16).reshape(4, 4)
        collector.add(f"image {index}", f"hash {index}", matrix)
        matrices.append(matrix)
    return collector.scores(), matrices


def test_each_image_has_the_score_of_its_own_matrix() -> None:
    scores, matrices = images(1)
    assert scores.miou.tolist() == pytest.approx([mean_iou(matrix) for matrix in matrices], rel=1e-15)
    assert scores.accuracy.tolist() == [np.trace(matrix) / 500 for matrix in matrices]


def test_the_interval_is_that_of_a_plain_loop() -> None:
    scores, matrices = images(1)
    interval = miou_interval(scores, resamples=300, seed=5)
    assert interval is not None
    random = np.random.default_rng(5)
    drawn = np.concatenate([random.integers(0, 12, (250, 12)), random.integers(0, 12, (50, 12))])
    means = [mean_iou(sum(matrices[place] for place in row)) for row in drawn]
    assert [interval.low, interval.high] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), rel=1e-12)
    assert interval.low < mean_iou(np.sum(matrices, axis=0)) < interval.high


def test_the_interval_agrees_with_scipy() -> None:
    scores, matrices = images(2, count=40)
    interval = miou_interval(scores)
    assert interval is not None
    stacked = np.array(matrices)
    reference = stats.bootstrap(
        (np.arange(40),),
        lambda places: mean_iou(stacked[places].sum(axis=0)),
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = reference.high - reference.low
    assert interval.low == pytest.approx(reference.low, abs=0.1 * width)
    assert interval.high == pytest.approx(reference.high, abs=0.1 * width)


def test_a_paired_difference_is_narrower_than_the_scores_themselves() -> None:
    (better, _), (worse, _) = images(1, right=0.83), images(1, right=0.8)
    difference, alone = paired_difference(better, worse), miou_interval(better)
    assert difference.interval is not None and alone is not None
    assert difference.interval.low > 0
    assert difference.better == 1.0
    assert difference.interval.high - difference.interval.low < (alone.high - alone.low) / 2
    same = paired_difference(better, better)
    assert (same.miou, same.better) == (0, 0)
    assert same.interval is not None and (same.interval.low, same.interval.high) == (0, 0)


def test_one_image_has_no_interval() -> None:
    scores, _ = images(1, count=1)
    assert miou_interval(scores) is None
    assert paired_difference(scores, scores).interval is None
