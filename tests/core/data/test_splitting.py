from pathlib import Path

import pytest

from gmtool.data.samples import Sample
from gmtool.data.splitting import Candidate, choose_labeled
from gmtool.errors import ConfigError


def candidates(*classes: set[int], prefix: str = "img") -> list[Candidate]:
    return [
        Candidate(Sample(f"{prefix}_{index:03d}", Path(f"{index}.jpg"), Path(f"{index}.png")), frozenset(labels))
        for index, labels in enumerate(classes)
    ]


COMMON = [{0, 1}] * 40 + [{0, 2}] * 5 + [{3}]


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_labeled_where_possible(seed: int) -> None:
    chosen = choose_labeled(candidates(*COMMON), 4, seed=seed)
    assert len(chosen.labeled) == 4
    assert len(chosen.unlabeled) == 42
    assert chosen.missing == frozenset()
    assert "img_045" in {sample.id for sample in chosen.labeled}


def test_what_cannot_be_covered_is_named() -> None:
    assert choose_labeled(candidates({0}, {1}, {2}, {3}), 2, seed=0).missing in (
        frozenset(pair) for pair in ({2, 3}, {1, 3}, {0, 1}, {0, 2}, {0, 3}, {1, 2})
    )


def test_the_choice_depends_on_the_seed_alone() -> None:
    first, again = (choose_labeled(candidates(*COMMON), 8, seed=1) for _ in range(2))
    assert first == again
    assert first != choose_labeled(candidates(*COMMON), 8, seed=2)
    assert [sample.id for sample in first.labeled] == sorted(sample.id for sample in first.labeled)


def test_groups_stay_whole() -> None:
    frames = [
        Candidate(Sample(f"seq{video}_{frame:02d}", Path("x"), Path("y")), frozenset({video % 3}))
        for video in range(8)
        for frame in range(5)
    ]
    chosen = choose_labeled(frames, 17, seed=0, group_pattern=r"^(seq\d+)_")
    videos = {sample.id[:4] for sample in chosen.labeled}
    assert len(chosen.labeled) == 15
    assert videos.isdisjoint(sample.id[:4] for sample in chosen.unlabeled)
    assert chosen.missing == frozenset()


@pytest.mark.parametrize(
    ("count", "pattern", "expected"),
    [
        (0, None, "0 labeled images of 46: expected 1 to 45"),
        (46, None, "expected 1 to 45"),
        (4, "(", "not a regular expression"),
        (4, "^seq", "does not match img_000"),
        (4, "img", "the smallest group has more than 4 images"),
    ],
)
def test_what_cannot_be_split_is_one_line(count: int, pattern: str | None, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose_labeled(candidates(*COMMON), count, seed=0, group_pattern=pattern)
    assert expected in str(error.value)
