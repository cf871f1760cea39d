"""The second stage: batches, memory, padding, tiles."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from fakes import FakeBackend
from gmtool_serving.backends.base import Prediction, refuse_unknown_labels
from gmtool_serving.backends.onnx_runtime import OrtBackend
from gmtool_serving.backends.session_shapes import SessionShapes
from gmtool_serving.backends.tiles import Tiling, predict_tiled, require_logits
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.inputs.decode import Failure
from gmtool_serving.pipeline.batching import Grouper
from gmtool_serving.pipeline.channel import Clock
from gmtool_serving.pipeline.compute import ComputeOptions, Labels, predict_batch
from gmtool_serving.pipeline.pipeline import Clocks
from gmtool_serving.pipeline.run import PredictOptions, predict_images
from PIL import Image

from gmtool.errors import BackendMemoryError, ConfigError, NonFiniteError, UnknownLabelError
from gmtool.images import UInt8Array, read_image
from gmtool.nn.checkpoint import load_network
from gmtool.nn.model import normalize


def pictures(count: int, height: int = 6, width: int = 9) -> list[UInt8Array]:
    random = np.random.default_rng(0)
    return list(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def masks(results: list[Labels | Failure]) -> list[UInt8Array]:
    assert not [result for result in results if isinstance(result, Failure)]
    return [result.mask for result in results if isinstance(result, Labels)]


def predict(
    backend: FakeBackend | OrtBackend, images: list[UInt8Array], pad_px: int = 0
) -> list[Labels | Failure]:
    names = [f"{index}.png" for index in range(len(images))]
    return predict_batch(backend, images, ComputeOptions(pad_px), names=names).results


def fits(count: int) -> FakeBackend:
    """A model with memory for so many images at once."""

    def check(images: UInt8Array) -> None:
        if len(images) > count:
            raise BackendMemoryError(f"no memory for {len(images)}")

    return FakeBackend(check=check)


def test_case_24_a_batch_that_is_too_large_is_halved_and_gives_the_same_masks() -> None:
    images, backend = pictures(7), fits(2)
    for actual, expected in zip(
        masks(predict(backend, images)), masks(predict(FakeBackend(), images)), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
    assert max(shape[0] for shape in backend.batches) == 7
    assert predict_batch(fits(2), images, ComputeOptions(), names=["x"] * 7).fitted == 2


def test_case_24_an_image_that_alone_is_too_large_fails_alone() -> None:
    def check(images: UInt8Array) -> None:
        if (images == 7).all(axis=(1, 2, 3)).any():
            raise MemoryError

    images = pictures(4)
    images[2] = np.full_like(images[2], 7)
    results = predict(FakeBackend(check=check), images)
    assert [isinstance(result, Failure) for result in results] == [False, False, True, False]
    assert isinstance(results[2], Failure)
    assert (results[2].code, results[2].message) == ("out_of_memory", "2.png: not enough memory")


@pytest.mark.parametrize(
    "text",
    [
        "Failed to allocate memory for requested buffer of size 318080",
        "std::bad_alloc",
        "bad allocation",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUDNN failure 5003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
        "CUDNN failure 5002: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ; GPU=0",
        "CUBLAS failure 3: the resource allocation failed ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_case_24_what_onnxruntime_says_when_memory_ran_out_is_known(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    backend = OrtBackend(toy_model, device="cpu", threads=1)

    def run(_: UInt8Array) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Conv: {text}")

    monkeypatch.setattr(backend, "_run", run)
    with pytest.raises(BackendMemoryError, match="onnxruntime failed"):
        backend.predict(np.zeros((1, 8, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize("lanes", [1, 2])
def test_case_24_a_run_goes_on_with_the_batch_that_fitted(tmp_path: Path, lanes: int) -> None:
    (tmp_path / "in").mkdir()
    for index, image in enumerate(pictures(80)):
        Image.fromarray(image).save(tmp_path / "in" / f"{index}.png")
    images, backend = collect_images([str(tmp_path / "in")], tmp_path / "out"), fits(3)
    backend.lanes = lanes
    outcomes = list(predict_images(backend, images, tmp_path / "out", PredictOptions(batch=8, workers=0)))
    assert all(outcome.failure is None for outcome in outcomes)
    too_many = [shape[0] for shape in backend.batches if shape[0] > 3]
    # 8, 4, 4; from then on 2 at once. Another lane may be computing its first batch at that time
    assert sorted(too_many, reverse=True) in [[8] * tried + [4, 4] * tried for tried in range(1, lanes + 1)]


def test_case_39_one_image_with_scores_that_are_not_finite_does_not_cost_the_batch() -> None:
    def check(images: UInt8Array) -> None:
        if (images == 7).all(axis=(1, 2, 3)).any():
            raise NonFiniteError("scores that are not finite")

    images = pictures(5)
    images[4] = np.full_like(images[4], 7)
    results = predict(FakeBackend(check=check), images)
    assert [isinstance(result, Failure) for result in results] == [False] * 4 + [True]
    assert isinstance(results[4], Failure) and results[4].code == "non_finite"


class FiveForWhite(FakeBackend):
    """A model of three classes that gives white pixels label 5."""

    def predict(self, images: UInt8Array) -> Prediction:
        given = super().predict(images)
        white = (images == 255).all(axis=3)
        if given.logits is None:
            return Prediction(np.where(white, 5, given.mask).astype(np.uint8))
        more = np.full((len(images), 3, *images.shape[1:3]), -9, dtype=np.float32)
        more[:, 2] = np.where(white, 9, -9)
        logits = np.concatenate([given.logits, more], axis=1)
        return Prediction(logits.argmax(axis=1).astype(np.uint8), None, logits)


@pytest.mark.parametrize("tiling", [None, Tiling(4, 4, overlap=0)])
def test_case_55_a_label_that_is_none_of_the_models_classes_fails_that_image_alone(tiling: Tiling | None) -> None:
    backend = FiveForWhite(outputs=("mask",) if tiling is None else ("logits",))
    images = [np.full((6, 9, 3), level, dtype=np.uint8) for level in (0, 100, 200, 200)]
    images[2][5, 8] = 255  # one pixel of one image
    results: list[Labels | Failure] = []
    for batch in [images] if tiling is None else [[image] for image in images]:
        names = [f"{len(results) + index}.png" for index in range(len(batch))]
        results += predict_batch(backend, batch, ComputeOptions(tiling=tiling), names=names).results
    assert [isinstance(result, Failure) for result in results] == [False, False, True, False]
    assert isinstance(results[2], Failure) and results[2].code == "unknown_label"
    assert results[2].message.startswith("2.png: the model gave label 5, but it has 3 classes, 0 to 2: ")


def test_case_55_the_last_class_is_one_of_them() -> None:
    refuse_unknown_labels(np.full((2, 3, 4), 2, dtype=np.uint8), 3)
    with pytest.raises(UnknownLabelError, match="gave label 3, but it has 3 classes"):
        refuse_unknown_labels(np.full((2, 3, 4), 3, dtype=np.uint8), 3)


def test_case_55_the_images_without_such_a_label_get_their_masks(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    for level in (10, 90, 255, 240):
        Image.new("RGB", (9, 6), (level,) * 3).save(tmp_path / "in" / f"{level}.png")
    images = collect_images([str(tmp_path / "in")], tmp_path / "out")
    outcomes = list(predict_images(FiveForWhite(), images, tmp_path / "out", PredictOptions(batch=4, workers=0)))
    failed = {outcome.image.path.name: outcome.failure.code for outcome in outcomes if outcome.failure}
    assert failed == {"255.png": "unknown_label"}
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["10.png", "240.png", "90.png"]


def test_case_23_neither_batch_nor_threads_nor_order_change_masks(
    toy_model: Path, toy_run: Path, toy_data: Path
) -> None:
    images = [read_image(path) for path in sorted((toy_data / "JPEGImages").iterdir())]
    network, _ = load_network(toy_run, "best")
    normalized = normalize(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    with torch.no_grad():
        alone = torch.cat([network(image[None]).logits for image in normalized])
        together = network(normalized).logits
    difference = max(float((alone - together).abs().max()), 1e-6 * float(alone.abs().max()))
    best = alone.topk(2, dim=1).values
    sure = (best[:, 0] - best[:, 1] > 2 * difference).numpy()
    assert sure.mean() > 0.99
    order = np.random.default_rng(1).permutation(len(images))
    runs = []
    for threads in (1, 2):
        backend = OrtBackend(toy_model, device="cpu", threads=threads)
        runs.append([mask for image in images for mask in masks(predict(backend, [image]))])
        shuffled = [images[index] for index in order]
        mixed = [
            mask
            for start in range(0, len(images), 8)
            for mask in masks(predict(backend, shuffled[start : start + 8]))
        ]
        runs.append([mixed[place] for place in np.argsort(order)])
    for other in runs[1:]:
        for index in range(len(images)):
            assert (runs[0][index] == other[index])[sure[index]].all()


def test_a_backend_with_two_lanes_gets_two_batches_at_once(tmp_path: Path) -> None:
    """As a plan, which copies one while it computes the other; the last thread to end closes the stage."""
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(12):
        Image.fromarray(np.full((6, 9, 3), 20 * index, np.uint8)).save(folder / f"{index:02d}.png")
    both = threading.Barrier(2, timeout=20)

    class TwoLanes(FakeBackend):
        lanes = 2

    def meet(images: UInt8Array) -> None:
        both.wait()  # broken, and an error, unless another batch is predicted at this moment

    written = []
    for name, backend in (("one", FakeBackend()), ("two", TwoLanes(check=meet))):
        out = tmp_path / name
        images = collect_images([str(folder)], out)
        outcomes = list(predict_images(backend, images, out, PredictOptions(workers=0, batch=2)))
        assert [outcome.error for outcome in outcomes] == [None] * 12
        written.append({path.name: path.read_bytes() for path in out.glob("*.png")})
    assert written[0] == written[1] and len(written[0]) == 12


def test_the_time_of_lanes_that_wait_for_each_other_counts_once() -> None:
    clocks = Clocks(Clock(), Clock(2), Clock(4))
    clocks.images, clocks.compute.busy_s, clocks.encode.busy_s = 10, 4.0, 4.0
    assert clocks.ms_per_image() == {"decode": 0.0, "compute": 200.0, "encode": 400.0}


def test_batches_follow_from_the_order_of_the_images_alone() -> None:
    grouper = Grouper[str](2, max_waiting=3, kind=lambda item: None if item == "alone" else item[0])
    given = ["a1", "b1", "a2", "alone", "c1", "d1", "e1", "b2"]
    assert [grouper.add(item) for item in given] == [
        [], [], [["a1", "a2"]], [["alone"]], [], [], [["b1"]], [["c1"]],
    ]  # fmt: skip
    assert grouper.flush() == [["d1"], ["e1"], ["b2"]]


def test_padding_lets_images_share_a_batch_and_is_cut_off_again() -> None:
    images = [*pictures(1, 6, 9), *pictures(1, 8, 7)]
    backend = FakeBackend()
    first, second = masks(predict(backend, images, pad_px=16))
    assert backend.batches == [(2, 16, 16, 3)]
    np.testing.assert_array_equal(first, masks(predict(backend, images[:1]))[0])
    np.testing.assert_array_equal(second, masks(predict(backend, images[1:]))[0])


@pytest.mark.parametrize(("height", "width"), [(40, 50), (16, 50), (10, 12), (33, 16), (97, 31)])
@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_of_a_model_that_sees_single_pixels_give_the_whole_image(
    height: int, width: int, batch: int
) -> None:
    (image,) = pictures(1, height, width)
    backend = FakeBackend(outputs=("logits",))
    tiled = predict_tiled(backend, image, Tiling(16, 16, overlap=4), batch=batch)
    np.testing.assert_array_equal(tiled.mask[0], masks(predict(backend, [image]))[0])
    assert max(shape[1] for shape in backend.batches[:-1]) <= 16


def test_tiles_are_blended_as_a_plain_weighted_mean() -> None:
    """A second way to compute the same: all logits and all weights in memory at once."""

    class Positional(FakeBackend):
        """Logits that depend on where in its tile a pixel is, so that overlapping tiles disagree."""

        def predict(self, images: UInt8Array) -> Prediction:
            y, x = np.mgrid[: images.shape[1], : images.shape[2]].astype(np.float32)
            value = images[..., 0].astype(np.float32) / 32
            logits = np.stack([value + np.sin(x), value * 0 + np.cos(y) + x / 9, value * 0 + 3], axis=1)
            return Prediction(logits.argmax(1).astype(np.uint8), None, logits)

    (image,) = pictures(1, 37, 41)
    backend = Positional(outputs=("logits",))
    total, weights = np.zeros((3, 37, 41)), np.zeros((37, 41))
    ramp = np.minimum(np.arange(16), 15 - np.arange(16)) + 1.0
    for top in (0, 10, 21):  # tiles of 16 over 37 and over 41, evenly spread
        for left in (0, 8, 17, 25):
            logits = backend.predict(image[None, top : top + 16, left : left + 16]).logits
            assert logits is not None
            weight = np.outer(ramp, ramp)
            total[:, top : top + 16, left : left + 16] += weight * logits[0]
            weights[top : top + 16, left : left + 16] += weight
    expected = total / weights
    tiled = predict_tiled(backend, image, Tiling(16, 16, overlap=4))
    best = np.sort(expected, axis=0)
    sure = best[-1] - best[-2] > 1e-4
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(tiled.mask[0][sure], expected.argmax(0)[sure])
    assert tiled.confidence is not None
    probability = np.exp(expected).max(0) / np.exp(expected).sum(0)
    np.testing.assert_allclose(tiled.confidence[0], 255 * probability, atol=0.51)


def test_a_model_without_logits_is_told_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match=r"gives mask alone: export it with gmtool export --output logits"):
        require_logits(FakeBackend())
    with pytest.raises(ConfigError, match="an overlap below both"):
        Tiling(16, 8, overlap=8)


def test_bound_values_are_those_of_a_plain_run(toy_model: Path) -> None:
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    batch = np.stack(pictures(2, 30, 40))
    np.testing.assert_array_equal(backend._run_bound(batch)[0], backend._run(batch)[0])


def test_on_a_card_one_batch_is_computed_while_another_is_bound(toy_model: Path) -> None:
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    batches = [np.stack(pictures(2, 30, 40)), np.stack(pictures(1, 17, 20))]
    expected = [backend._run(batch)[0] for batch in batches]
    session, computing = backend._sessions.session_for(batches[0]), threading.Lock()
    bound = threading.Barrier(2, timeout=20)

    class Session:
        """The session, which refuses to compute two batches at once, and to compute before both are bound."""

        def io_binding(self) -> Any:
            binding = session.io_binding()
            bound.wait()
            return binding

        def run_with_iobinding(self, binding: Any) -> None:
            assert computing.acquire(blocking=False), "two at once"
            time.sleep(0.05)
            session.run_with_iobinding(binding)
            computing.release()

    backend._sessions = SessionShapes(cast(Any, Session()), lambda count: cast(Any, Session()))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda batch: backend._run_bound(batch)[0], batches))
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000)])
def test_case_14_the_smallest_and_the_thinnest_image_get_a_mask(toy_model: Path, size: tuple[int, int]) -> None:
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    (mask,) = masks(predict(backend, [np.zeros((*size, 3), dtype=np.uint8)]))
    assert mask.shape == size
