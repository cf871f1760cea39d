"""Models side by side: figures that can be checked, and what may not decide them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Cli
from gmtool_serving.backends.base import InferenceDevice, Prediction
from gmtool_serving.backends.onnx_runtime import OrtBackend
from gmtool_serving.benchmark import run as benchmark
from gmtool_serving.benchmark.images import ImageBatch, load_batches, samples_below, spread
from gmtool_serving.benchmark.run import BenchmarkRow, BenchmarkSettings, run_benchmark
from gmtool_serving.scoring.evaluate import score
from gmtool_serving.scoring.tasks import model_task

from gmtool.artifact.sealed_onnx import SHA256_KEY, SPEC_KEY, UNSEALED, seal
from gmtool.classes import ClassSet, load_classes
from gmtool.config import DataConfig
from gmtool.data.datasets import load_split
from gmtool.data.samples import Sample
from gmtool.errors import BackendError, DataError
from gmtool.images import UInt8Array

QUICK = BenchmarkSettings(device="cpu", threads=1, rounds=2, memory=False)


@pytest.fixture(scope="module")
def classes(toy_data: Path) -> ClassSet:
    return load_classes(str(toy_data / "classes.json"))


@pytest.fixture(scope="module")
def val(toy_data: Path) -> list[Sample]:
    return list(load_split(DataConfig(root=toy_data), "val", None).samples)


@pytest.fixture(scope="module")
def other_model(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with one weight of its last layer changed."""
    model = onnx.load(toy_model)
    spec = {entry.key: entry.value for entry in model.metadata_props}[SPEC_KEY]
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [6])
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] -= 2  # less background
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.helper.set_model_props(model, {SPEC_KEY: spec, SHA256_KEY: UNSEALED})
    path = tmp_path_factory.mktemp("other") / "other.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    return path


def test_masks_are_scored_and_compared_as_elsewhere(
    toy_model: Path, other_model: Path, toy_data: Path, val: list[Sample], classes: ClassSet
) -> None:
    batches = load_batches(val, classes, values="index", batch=3, size=None)
    rows = run_benchmark([toy_model, other_model], batches, QUICK, progress=iter)
    split = load_split(DataConfig(root=toy_data), "val", None)
    masks = []
    for row, path in zip(rows, (toy_model, other_model), strict=True):
        backend = OrtBackend(path, device="cpu", threads=1)
        report = score(model_task(backend, split, values="index"), progress=iter)
        assert row.miou == pytest.approx(report.miou, abs=1e-12)
        assert row.size_bytes == path.stat().st_size
        masks.append(np.stack([backend.predict(batch.images).mask[: batch.count] for batch in batches[:1]]))
    assert rows[0].agreement == 1
    assert rows[0].speed == 1
    assert rows[1].agreement is not None and 0.1 < rows[1].agreement < 1
    assert rows[0].miou != rows[1].miou


def test_batches_are_of_one_size_and_full(val: list[Sample], classes: ClassSet, tmp_path: Path) -> None:
    batches = load_batches(val, classes, values="index", batch=3, size=None)
    assert [(len(batch.images), batch.count, len(batch.truths)) for batch in batches] == [(3, 3, 3), (3, 1, 1)]
    np.testing.assert_array_equal(batches[1].images[0], batches[1].images[2])
    resized = load_batches(val, classes, values="index", batch=2, size=(32, 40))
    assert [batch.images.shape for batch in resized] == [(2, 32, 40, 3)] * 2
    labels = {int(label) for batch in resized for truth in batch.truths for label in np.unique(truth)}
    assert labels <= {*range(6), 255}  # nearest: no label between two others
    assert [sample.id for sample in spread(val, 2)] == [val[0].id, val[3].id]
    assert spread(val, 0) == val


class Slow:
    """A backend that takes the time it is told, on a clock of its own."""

    def __init__(self, clock: list[float], times: list[float], spec: object) -> None:
        self._clock, self._times, self.spec, self.description = clock, times, spec, "clock"

    def predict(self, images: UInt8Array) -> Prediction:
        self._clock[0] += self._times.pop(0)
        return Prediction(np.zeros(images.shape[:3], np.uint8))


@pytest.fixture
def on_a_clock(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[float], list[float]], list[BenchmarkRow]]:
    """Measures two models that take given times: in the first pass, then in each round."""
    spec, clock = OrtBackend(toy_model, device="cpu", threads=1).spec, [0.0]

    def measure(first: list[float], second: list[float]) -> list[BenchmarkRow]:
        times = {"a.onnx": first, "b.onnx": second}
        rounds = len(first) - 1
        with monkeypatch.context() as patch:
            patch.setattr("time.perf_counter", lambda: clock[0])
            patch.setattr(benchmark, "open_backend", lambda path, **options: Slow(clock, times[path.name], spec))
            batch = ImageBatch(np.zeros((4, 8, 8, 3), np.uint8), (), 4)
            models = [Path("a.onnx"), Path("b.onnx")]
            return run_benchmark(models, [batch], replace(QUICK, rounds=rounds), progress=iter)

    return measure


def test_figures_are_those_of_the_clock(
    on_a_clock: Callable[[list[float], list[float]], list[BenchmarkRow]],
) -> None:
    """The second model takes twice as long; a disturbed round takes both ten times as long and decides nothing."""
    rows = on_a_clock([9.0, 0.1, 1.0, 0.1], [9.0, 0.2, 2.0, 0.2])
    assert [row.p50_ms for row in rows] == pytest.approx([100, 200])
    assert rows[1].p95_ms == pytest.approx(np.percentile([200, 2000, 200], 95))
    assert [row.images_per_s for row in rows] == pytest.approx([40, 20])
    assert [row.speed for row in rows] == pytest.approx([1, 0.5])
    assert (rows[0].miou, rows[0].agreement) == (None, 1)


def test_who_comes_first_does_not_decide(
    on_a_clock: Callable[[list[float], list[float]], list[BenchmarkRow]],
) -> None:
    rows = on_a_clock([9.0, 0.2, 0.1, 0.2, 0.1], [9.0, 0.1, 0.2, 0.1, 0.2])  # twice as long for the first
    assert [row.speed for row in rows] == pytest.approx([1, 1])


def test_models_take_turns_in_coming_first(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Watched(OrtBackend):
        def predict(self, images: UInt8Array) -> Prediction:
            order.append(Path(self.model).stem)
            return super().predict(images)

    monkeypatch.setattr(
        benchmark,
        "open_backend",
        lambda path, device, threads, trust: Watched(path, device=device, threads=threads),
    )
    copy = tmp_path / "copy.onnx"
    shutil.copy(toy_model, copy)
    batch = ImageBatch(np.zeros((1, 16, 16, 3), np.uint8), (), 1)
    run_benchmark([toy_model, copy], [batch], QUICK, progress=iter)
    a, b = toy_model.stem, "copy"
    assert order == [a, b, a, b, b, a]  # untimed; first round; second round


def test_a_model_that_fails_does_not_stop_the_others(
    toy_model: Path, toy_data: Path, tmp_path: Path, cli: Cli
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"<html>")
    out = tmp_path / "figures.json"
    arguments = ["benchmark", toy_model, bad, "--rounds", 1, "--limit", 2, "--threads", 1, "--device", "cpu"]
    code, stdout, err = cli([*arguments, "--out", out, "--batch", 2])
    assert code == 3
    assert "failed: " in err and "is not a model that gmtool export wrote" in err
    assert "with ground truth" in err  # the run's own validation set
    assert "model_fp32.onnx" in stdout
    good, failed = json.loads(out.read_text())["models"]
    assert good["error"] is None and failed["error"] is not None and failed["p50_ms"] is None
    assert 0 < good["peak_bytes"] < 2**30
    code, _, err = cli(["benchmark", bad, toy_model, "--images", toy_data / "JPEGImages"])
    assert code == 1 and err.startswith("error: ")


def test_a_shape_that_a_model_does_not_take_is_told(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Narrow(OrtBackend):
        def predict(self, images: UInt8Array) -> Prediction:
            raise BackendError("batch 1 is outside 2..4")

    other = tmp_path / "narrow.onnx"
    shutil.copy(toy_model, other)

    def opened(path: Path, *, device: InferenceDevice, threads: int, trust: bool) -> OrtBackend:
        return (Narrow if path == other else OrtBackend)(path, device=device, threads=threads)

    monkeypatch.setattr(benchmark, "open_backend", opened)
    batch = ImageBatch(np.zeros((1, 16, 24, 3), np.uint8), (), 1)
    good, narrow = run_benchmark([toy_model, other], [batch], QUICK, progress=iter)
    with pytest.raises(DataError, match=r"the reference, cannot be run: 1x16x24: batch 1 is outside"):
        run_benchmark([other, toy_model], [batch], QUICK, progress=iter)
    assert good.error is None and good.p50_ms is not None
    assert narrow.error == "1x16x24: batch 1 is outside 2..4"


def test_folders_of_images_and_masks_go_together_by_name(
    toy_data: Path, tmp_path: Path, cli: Cli, toy_model: Path
) -> None:
    images, truth = tmp_path / "images", tmp_path / "truth"
    for folder in (images / "a", truth / "a"):
        folder.mkdir(parents=True)
    for name in ("toy_00000", "toy_00001"):
        shutil.copy(toy_data / f"JPEGImages/{name}.jpg", images / "a")
    shutil.copy(toy_data / "SegmentationClass/toy_00001.png", truth / "a")
    assert [sample.id for sample in samples_below(images, truth)] == ["a/toy_00001"]
    assert [sample.mask for sample in samples_below(images, None)] == [None, None]
    with pytest.raises(DataError, match="no mask for any image"):
        samples_below(images, tmp_path / "images")
    for arguments, expected in (
        (["--images", tmp_path / "nowhere"], "no such folder"),
        (["--images", truth / "a", "--ground-truth", images], "no mask for any image"),
        (["--ground-truth", truth], "give both, or neither"),
        (["--images", images, "--size", "512x"], "expected HEIGHTxWIDTH"),
    ):
        code, _, err = cli(["benchmark", toy_model, *arguments, "--device", "cpu"])
        usage = arguments[0] == "--ground-truth" or "--size" in arguments
        assert (code, expected in err) == (2 if usage else 1, True), err
