"""Choice of images to label next: measurements, strategies, near-duplicates, files."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli
from fakes import FakeBackend
from gmtool_serving.backends.base import Prediction
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.inputs.decode import DecodeOptions
from gmtool_serving.pipeline.decoder_pool import Decoders
from gmtool_serving.select import saved
from gmtool_serving.select.appearance import appearance_of
from gmtool_serving.select.certainty import CertaintyBackend, default_strategy
from gmtool_serving.select.choose import choose, class_weights, embedding_of, nearest_of
from gmtool_serving.select.job import Selection, SelectOptions, select_job
from gmtool_serving.select.measure import Measures, measure
from PIL import Image

from gmtool.data.splits import read_split
from gmtool.errors import ConfigError, DataError

MIDDLE = (42, 127, 212)
"""Red levels in the middle of the fake model's classes."""


def save(folder: Path, name: str, red: np.ndarray[Any, Any], *, green: int = 0) -> None:
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*red.shape, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = red, green
    Image.fromarray(pixels).save(path)


def noise(seed: int, *, low: int = 0, high: int = 255) -> np.ndarray[Any, Any]:
    """Blocks of 4x4 pixels, so that thumbnails differ."""
    blocks = np.random.default_rng(seed).integers(low, high, (8, 8))
    return np.kron(blocks, np.ones((4, 4), dtype=int))


def no_progress(_: int) -> AbstractContextManager[Any]:
    return nullcontext(lambda done: None)


def run(pool: Path | Sequence[Path], out: Path, backend: FakeBackend | None = None, **options: Any) -> Selection:
    pools = [pool] if isinstance(pool, Path) else pool
    images = collect_images([str(one) for one in pools], out)
    how = SelectOptions(**{"workers": 0, **options})
    return select_job(images, out, how, backend or FakeBackend(outputs=("logits",)), progress=no_progress)


def ids(found: Selection) -> list[str]:
    return [str(image.output) for image in found.chosen]


def rows(found: Selection) -> dict[str, dict[str, str]]:
    text = (found.out / "scores.csv").read_text(encoding="utf-8")
    return {row["id"]: row for row in csv.DictReader(text.splitlines())}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Twelve different images, of which a and b are the least sure."""
    folder = tmp_path / "pool"
    for number in range(10):
        save(folder, f"sure{number}", np.full((32, 32), MIDDLE[number % 3]), green=25 * number)
    for number, name in enumerate("ab"):
        red = np.full((32, 32), 85)
        red[:, : 8 + 8 * number] = 170
        save(folder, name, red, green=200)
    return folder


@pytest.mark.parametrize("kind", ["entropy", "margin"])
def test_certainty_is_that_of_the_probabilities(kind: Any) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (2, 5, 4, 6)).astype(np.float32)

    class Fixed(FakeBackend):
        def predict(self, images: Any) -> Prediction:
            return Prediction(None, None, logits)

    found = CertaintyBackend(Fixed(), kind).predict(np.zeros((2, 4, 6, 3), np.uint8)).confidence
    assert found is not None
    for place in np.ndindex(2, 4, 6):
        scores = [math.exp(float(v)) for v in logits[place[0], :, place[1], place[2]]]
        chances = sorted((score / sum(scores) for score in scores), reverse=True)
        entropy = 1 + sum(p * math.log(p) for p in chances) / math.log(5)
        expected = entropy if kind == "entropy" else chances[0] - chances[1]
        assert abs(found[place] - 255 * expected) <= 0.51


def test_measures_are_means_over_pixels(tmp_path: Path) -> None:
    red = np.full((8, 10), MIDDLE[0])
    red[:, :4] = 100
    save(tmp_path / "p", "x", red)
    (tmp_path / "p" / "y.png").write_bytes(b"no image")
    decoders = Decoders(1, DecodeOptions(), isolated=False)
    backend = FakeBackend(outputs=("mask", "confidence"))
    images = collect_images([str(tmp_path / "p")], tmp_path / "out")
    found = measure(images, CertaintyBackend(backend, "confidence"), decoders, batch=2)
    decoders.close()
    assert found.is_measured.tolist() == [True, False] and list(found.failures) == [1]
    np.testing.assert_allclose(found.shares[0], [0.6, 0.4, 0], rtol=1e-6)
    np.testing.assert_allclose(found.doubt[0], [0.6 * (255 - 42) / 255, 0.4 * (255 - 100) / 255, 0], rtol=1e-6)


@pytest.mark.parametrize("strategy", ["entropy", "margin"])
def test_the_least_sure_images_come_first(strategy: Any, pool: Path, tmp_path: Path) -> None:
    found = run(pool, tmp_path / "out", count=2, strategy=strategy)
    assert set(ids(found)) == {"a", "b"}
    assert [entry.name for entry in read_split(found.out / "selected.txt")] == ids(found)
    table = rows(found)
    assert len(table) == 12 and table[ids(found)[0]]["rank"] == "1"
    assert float(table["a"]["uncertainty"]) > float(table["sure1"]["uncertainty"])
    assert "times the pool's mean" in table["a"]["reason"] and "not among the first 2" in table["sure1"]["reason"]


def test_uncertain_pixels_of_rare_classes_weigh_more() -> None:
    shares = np.array([[0.9, 0.1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=np.float32)
    empty = np.zeros((4, 1), dtype=np.float32)
    measures = Measures([], np.ones(4, dtype=bool), shares, shares, empty, empty.astype(np.uint8), {})
    weights = class_weights(measures)
    np.testing.assert_allclose(weights, [math.sqrt(0.5 / 0.975), 4, 0], rtol=1e-5)


def test_default_prefers_an_unlike_image_to_a_slightly_less_sure_one(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    for number in range(4):  # alike, but no near-duplicates
        save(folder, f"alike{number}", np.full((32, 32), 86), green=20 * number)
    save(folder, "other", noise(1, low=100, high=150), green=0)
    first = run(folder, tmp_path / "entropy", count=2, strategy="entropy", duplicate_levels=2.0)
    second = run(folder, tmp_path / "mixed", count=2, duplicate_levels=2.0)
    assert all(name.startswith("alike") for name in ids(first))
    assert ids(second)[0].startswith("alike") and ids(second)[1] == "other"


def test_near_duplicates_are_taken_once_and_never_of_labeled_images(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    for number in range(3):
        for frame in range(3):
            save(folder, f"video{number}/{frame}", noise(number, high=250) + frame)
    (tmp_path / "labeled.txt").write_text("train/video0/0\n")
    for strategy in ("mixed", "coreset", "entropy"):
        found = run(folder, tmp_path / strategy, count=9, strategy=strategy, labeled=tmp_path / "labeled.txt")
        assert sorted(name.partition("/")[0] for name in ids(found)) == ["video1", "video2"]
        assert found.duplicates == 6 and found.labeled == 1
        assert rows(found)["video0/1"]["reason"] == "near-duplicate of video0/0"
        assert rows(found)["video0/0"]["reason"] == "labeled"
    everything = run(folder, tmp_path / "all", count=9, duplicate_levels=0.0)
    assert len(everything.chosen) == 9


def test_coreset_is_k_centre_greedy(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "labeled.txt").write_text("sure0\n")
    found = run(
        pool, tmp_path / "out", count=4, strategy="coreset", labeled=tmp_path / "labeled.txt", duplicate_levels=0.0
    )
    images = collect_images([str(pool)], tmp_path / "other")
    decoders = Decoders(1, DecodeOptions(), isolated=False)
    measures = measure(images, FakeBackend(outputs=("logits",)), decoders, batch=1)
    decoders.close()
    vectors = embedding_of(measures).astype(float)
    names = [str(image.output) for image in images]
    centres = [names.index("sure0")]
    for name in ids(found):
        distance = [min(float(np.linalg.norm(v - vectors[c])) for c in centres) for v in vectors]
        assert distance[names.index(name)] == pytest.approx(max(distance), abs=1e-6)
        centres.append(names.index(name))


def test_nearest_centres_equal_all_distances() -> None:
    generator = np.random.default_rng(0)
    vectors, centres = generator.normal(size=(5000, 7)).astype(np.float32), generator.normal(size=(9, 7))
    distance, index = nearest_of(vectors, centres.astype(np.float32))
    every = np.linalg.norm(vectors[:, None] - centres, axis=2)
    np.testing.assert_allclose(distance, every.min(axis=1), rtol=1e-4)
    assert (index == every.argmin(axis=1)).mean() > 0.999


def test_the_seed_decides_alone(pool: Path, tmp_path: Path) -> None:
    for strategy in ("random", "coreset"):
        first = run(pool, tmp_path / f"{strategy}1", count=4, strategy=strategy, seed=3)
        again = run(pool, tmp_path / f"{strategy}2", count=4, strategy=strategy, seed=3)
        assert ids(first) == ids(again)
        assert (first.out / "scores.csv").read_bytes() == (again.out / "scores.csv").read_bytes()
        others = [
            ids(run(pool, tmp_path / f"{strategy}{s}", count=4, strategy=strategy, seed=s)) for s in (4, 5, 6)
        ]
        assert any(other != ids(first) for other in others)


def test_random_reads_no_more_images_than_it_needs(pool: Path, tmp_path: Path) -> None:
    (pool / "broken.png").write_bytes(b"no image")
    backend = FakeBackend()
    found = run(pool, tmp_path / "out", backend, count=3, strategy="random")
    assert len(found.chosen) == 3 and len(backend.batches) == 2 * 3  # measured, and drawn on the sheet
    assert rows(found)["a"]["reason"] in ("not drawn", "drawn at random")


def test_appearance_does_not_depend_on_the_size_of_the_image() -> None:
    pixels = np.repeat(noise(2)[..., None], 3, axis=2).astype(np.uint8)
    large = np.kron(pixels, np.ones((8, 8, 1), dtype=np.uint8))
    thumbnail, vector = appearance_of(pixels)
    same, also = appearance_of(large)
    assert np.abs(thumbnail.astype(int) - same.astype(int)).max() <= 2
    assert float(np.linalg.norm(vector - also)) < 0.05 and float(np.linalg.norm(vector)) == pytest.approx(
        1, abs=1e-5
    )
    assert appearance_of(np.full((1, 1, 3), 128, dtype=np.uint8))[1].shape == vector.shape


def test_what_cannot_work_is_refused_before_anything_is_written(pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"needs confidence.*--output mask\+confidence"):
        run(pool, out, FakeBackend())
    with pytest.raises(ConfigError, match="needs logits.*--output logits"):
        run(pool, out, FakeBackend(outputs=("mask", "confidence")), strategy="margin")
    (tmp_path / "labeled.txt").write_text("elsewhere/z\n")
    with pytest.raises(
        DataError, match=r"none of its 1 images is in the pool: it names elsewhere/z, the pool has a"
    ):
        run(pool, out, labeled=tmp_path / "labeled.txt")
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(ConfigError, match="not empty"):
        run(pool, out)


def test_the_strategy_follows_from_what_the_model_gives(pool: Path, tmp_path: Path) -> None:
    assert default_strategy(("mask", "confidence", "embedding")) == "coreset"
    assert default_strategy(("logits",)) == "mixed"
    assert run(pool, tmp_path / "out", count=2).strategy == "mixed"


def test_the_command_writes_list_table_sheet_and_masks_to_correct(
    toy_run: Path, toy_data: Path, tmp_path: Path, cli: Cli
) -> None:
    model = toy_run / "export" / "model_fp32.onnx"
    images, labeled = toy_data / "JPEGImages", toy_data / "splits" / "labeled.txt"
    line = ["select", images, "--model", model, "--labeled", labeled, "--count", 3, "--device", "cpu"]
    code, _, err = cli([*line, "--out", tmp_path / "refused"])
    assert code == 1 and "--output mask+confidence" in err
    out = tmp_path / "out"
    line += ["--workers", 0, "--strategy", "coreset", "--duplicates", 0]
    code, said, err = cli([*line, "--prelabel", "labelme", "--tolerance", 0, "--out", out])
    assert code == 0, err
    assert said.startswith("3 of 24 images in")
    chosen = [entry.name for entry in read_split(out / "selected.txt")]
    assert len(chosen) == 3 and not set(chosen) & {entry.name for entry in read_split(labeled)}
    assert sorted(path.stem for path in (out / "prelabel").glob("*.json")) == sorted([*chosen])
    page = (out / "selected.html").read_text(encoding="utf-8")
    assert (
        page.count("<section") == 3
        and all(name in page for name in chosen)
        and 'src="http' not in page
        and "<script" not in page
    )
    code, _, err = cli([*line, "--tolerance", 0, "--out", tmp_path / "again"])
    assert code == 2 and "--tolerance does nothing without --prelabel FORMAT" in err


def test_bald_is_the_mutual_information_of_an_image_and_its_mirror_image() -> None:
    logits = np.random.default_rng(1).normal(0, 2, (1, 4, 3, 6)).astype(np.float32)
    other = np.random.default_rng(2).normal(0, 2, (1, 4, 3, 6)).astype(np.float32)

    class Fixed(FakeBackend):
        def predict(self, images: Any) -> Prediction:
            return Prediction(None, None, logits if images[0, 0, 0, 0] == 0 else other[..., ::-1])

    image = np.zeros((1, 3, 6, 3), np.uint8)
    image[:, :, 3:] = 9
    found = CertaintyBackend(Fixed(), "bald").predict(image).confidence
    assert found is not None

    def chances(values: Any) -> Any:
        return np.exp(values.astype(np.float64)) / np.exp(values.astype(np.float64)).sum(axis=1, keepdims=True)

    def entropy(p: Any) -> Any:
        return -(p * np.log(p)).sum(axis=1)

    one, two = chances(logits), chances(other)
    information = entropy((one + two) / 2) - (entropy(one) + entropy(two)) / 2
    np.testing.assert_allclose(found, 255 * (1 - np.sqrt(information / np.log(2))), atol=0.51)


def test_kmeans_plus_plus_draws_by_squared_distance() -> None:
    """Nine images at one place and one far away: that one comes first, whatever the seed."""
    shares = np.zeros((10, 2), dtype=np.float32)
    shares[:, 0], shares[9] = 1, (0, 1)
    empty = np.zeros((10, 1), dtype=np.float32)
    images: Any = range(10)
    measures = Measures(images, np.ones(10, dtype=bool), shares, shares, empty, empty.astype(np.uint8), {})
    how: dict[str, Any] = {"strategy": "kmeans++", "labeled": [0], "duplicate_levels": 0.0}
    assert {choose(measures, 1, seed=seed, **how).chosen[0] for seed in range(8)} == {9}
    later = {tuple(choose(measures, 3, seed=seed, **how).chosen[1:]) for seed in range(8)}
    assert len(later) > 1 and all(len(set(places)) == 2 and 9 not in places for places in later)


def test_distances_are_those_of_the_models_embedding_if_it_has_one(pool: Path, tmp_path: Path) -> None:
    class Embedding(FakeBackend):
        """Sees nothing but the green channel's mean, beside a coordinate that is larger and the same for all."""

        def predict(self, images: Any) -> Prediction:
            found = super().predict(images)
            green = images[..., 1].reshape(len(images), -1).mean(axis=1)
            vectors = np.stack([green, np.full(len(images), 9000.0)], axis=1).astype(np.float32)
            return Prediction(found.mask, found.confidence, embedding=vectors)

    images = collect_images([str(pool)], tmp_path / "out")
    decoders = Decoders(1, DecodeOptions(), isolated=False)
    found = measure(
        images, CertaintyBackend(Embedding(outputs=("mask", "confidence")), "confidence"), decoders, batch=3
    )
    decoders.close()
    green = np.array([25 * int(image.output.name[4:]) if "sure" in image.output.name else 200 for image in images])
    assert found.embedding is not None
    np.testing.assert_allclose(found.embedding[:, 0], green, atol=1)
    vectors = embedding_of(found).astype(np.float32)
    np.testing.assert_allclose(vectors[:, 0], np.sign(green - green.mean()), atol=0.01)
    chosen = choose(found, 2, strategy="coreset", labeled=[], seed=0, duplicate_levels=0.0).chosen
    assert np.sign(green - green.mean())[chosen].sum() == 0


@pytest.mark.parametrize("every_s", [0.0, 60.0])
def test_an_interrupted_selection_goes_on_with_what_was_measured(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float
) -> None:
    """Saved after each batch, and by the interruption itself."""
    monkeypatch.setattr(saved, "EVERY_S", every_s)
    monkeypatch.setattr(saved, "LARGEST_SHARE", 1e9)
    seen: list[int] = []

    class Interrupted(FakeBackend):
        """Stops as by Ctrl-C after some images."""

        stop_at = 7

        def predict(self, images: Any) -> Prediction:
            seen.append(len(images))
            if len(seen) == self.stop_at:
                raise KeyboardInterrupt
            return super().predict(images)

    how: dict[str, Any] = {"count": 3, "batch": 1, "seed": 4}
    outputs: Any = ("mask", "confidence")
    whole = run(pool, tmp_path / "whole", FakeBackend(outputs=outputs), **how)
    with pytest.raises(KeyboardInterrupt):
        run(pool, tmp_path / "out", Interrupted(outputs=outputs), **how)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished.npz"]
    with pytest.raises(ConfigError, match=r"unfinished\.npz is of a selection with another model, pool or opt"):
        run([pool / "a.png", pool / "b.png"], tmp_path / "out", FakeBackend(outputs=outputs), **how)
    before = len(seen)
    again = Interrupted(outputs=outputs)
    again.stop_at = 10**6
    found = run(pool, tmp_path / "out", again, **how)
    assert ids(found) == ids(whole)
    # Six images were measured before; three chosen ones are predicted again for the contact sheet
    assert len(seen) - before == 12 - 6 + 3
    assert not (tmp_path / "out/unfinished.npz").exists()
    assert (tmp_path / "out/scores.csv").read_bytes() == (tmp_path / "whole/scores.csv").read_bytes()
