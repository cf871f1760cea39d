"""Layers that int8 loses too much with: moved back one after another, kept for a second export, and said."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Cli
from gmtool_export.graph.onnx import export_graph
from gmtool_export.int8 import cache as cache_module
from gmtool_export.int8.cache import calibrate
from gmtool_export.int8.calibration import Calibration
from gmtool_export.int8.search import quantize, search
from gmtool_export.int8.sensitivity import LayerError
from gmtool_export.proof.gate import TOLERANCES, judge
from gmtool_export.proof.miou_drop import ImageScore, ScoreProof
from gmtool_export.proof.parity import ParityRow, Runner, onnx_runner

from gmtool.errors import ParityError
from gmtool.images import UInt8Array
from gmtool.nn.checkpoint import load_network

LAYERS = [
    LayerError(node, node.upper(), error, error / 10) for node, error in (("a", 0.9), ("b", 0.5), ("c", 0.1))
]


def losing(losses: dict[str, float]) -> object:
    """A loss that depends on the layers in float32."""
    return lambda nodes: losses["".join(nodes)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({"": 0.3}, []),
        ({"": 3.0, "a": 0.4}, ["a"]),
        ({"": 3.0, "a": 2.0, "ab": 0.4}, ["a", "b"]),
        ({"": 3.0, "a": 2.0, "ab": 2.5, "abc": 2.4}, ["a"]),  # never enough: the least loss counts
        ({"": 3.0, "a": 3.5, "ab": 3.2, "abc": 4.0}, []),
    ],
)
def test_layers_move_to_float32_until_the_loss_is_small(losses: dict[str, float], expected: list[str]) -> None:
    first, steps, nodes = search(losing(losses), lambda: LAYERS, goal=0.5, most=3)  # type: ignore[arg-type]
    assert (first, nodes) == (losses[""], expected)
    assert [step.layer for step in steps] == [node.upper() for node in expected]
    assert [step.loss for step in steps] == [losses["abc"[: count + 1]] for count in range(len(expected))]


def test_no_layer_is_measured_where_int8_loses_little_and_no_more_move_than_allowed() -> None:
    def fail() -> Sequence[LayerError]:
        raise AssertionError("measured")

    assert search(lambda _: 0.1, fail, goal=0.5, most=3) == (0.1, (), [])
    tried: list[int] = []

    def loss(nodes: Sequence[str]) -> float:
        tried.append(len(nodes))
        return 9.0

    search(loss, lambda: LAYERS, goal=0.5, most=2)
    assert tried == [0, 1, 2]


@pytest.fixture(scope="module")
def graph(toy_run: Path) -> onnx.ModelProto:
    return export_graph(load_network(toy_run, "best")[0])


def test_a_second_export_takes_ranges_and_layers_from_the_cache(
    graph: onnx.ModelProto, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Calibration("three images", tuple(sorted((toy_data / "JPEGImages").iterdir())[:3]))
    path, drops = tmp_path / "cache.json", iter([5.0, 0.1, 5.0, 0.1])
    first = quantize(
        graph, calibrate(graph, images, cache=path), symmetric=False, measure=lambda _: next(drops), max_drop=1.0
    )
    monkeypatch.setattr(cache_module, "measure_ranges", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(cache_module, "layer_errors", lambda *_: pytest.fail("measured again"))
    second = quantize(
        graph, calibrate(graph, images, cache=path), symmetric=False, measure=lambda _: next(drops), max_drop=1.0
    )
    assert second[1] == first[1] and second[0] == first[0]
    made = first[1]
    assert made.first_loss == 5.0 and [step.loss for step in made.steps] == [0.1]
    assert made.float_layers == ("network.decoder.classifier", made.steps[0].layer)
    # Other images: measured again
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        calibrate(graph, Calibration("two", images.paths[:2]), cache=path)
    # A damaged cache is no cache
    path.write_text("{")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        calibrate(graph, images, cache=path)


def row(shape: str, agreement: float) -> ParityRow:
    return ParityRow(shape, 1, 8, 8, agreement, 1.0, 9.0, 0, 3)


def scored(agreement: float, drop: float) -> ScoreProof:
    return ScoreProof("val", 4, 4, 0.5, 0.5 - drop / 100, agreement, ImageScore("a", agreement), 3)


def test_int8_is_judged_on_whole_images_and_a_small_one_decides_nothing() -> None:
    bounds = TOLERANCES["int8"]
    judge("it", "int8", [row("smaller", 0.87), row("own size", 0.96)], scored(0.96, 0.37), bounds)
    with pytest.raises(ParityError, match="on 88.00% of the pixels of whole images; expected 90.00%"):
        judge("it", "int8", [row("smaller", 0.99)], scored(0.88, 0.37), bounds)
    with pytest.raises(ParityError, match="on 89.00% of the pixels of whole images"):
        judge("it", "int8", [row("smaller", 0.99), row("own size", 0.89)], None, bounds)
    with pytest.raises(ParityError, match=r"40.0000% of the pixels at 1x8x8 \(odd\)"):  # a broken graph
        judge("it", "int8", [row("odd", 0.4), row("own size", 0.96)], scored(0.96, 0.1), bounds)


def test_a_refused_int8_model_is_kept_with_its_figures_until_one_is_accepted(
    cli: Cli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: onnx.ModelProto
) -> None:
    from gmtool_export import run as run_module

    monkeypatch.setattr(run_module, "export_graph", lambda *_, **__: graph)
    run = Path(shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))
    code, out, err = cli(["export", run, "--precision", "int8", "--min-agreement", "100"])
    assert (code, out) == (1, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "it was kept as model_int8.onnx.rejected, with its figures" in line
    kept = run / "export/model_int8.onnx.rejected"
    assert sorted(path.name for path in kept.parent.iterdir()) == [
        "int8_cache.json",
        "model_int8.onnx.rejected",
        "model_int8.onnx.rejected.json",
    ]
    figures = json.loads(kept.with_name(kept.name + ".json").read_text())
    assert figures["reason"] in line
    assert figures["proofs"][0]["score"]["agreement"] < 1 and figures["quantization"]["quantized_layers"] > 0
    # It can be looked at, and goes when a model is accepted
    assert cli(["info", kept])[0] == 0
    code, out, err = cli(["export", run, "--precision", "int8", "--min-agreement", "80", "--max-miou-drop", "20"])
    assert code == 0, err
    assert "ranges as measured by an earlier export" in err
    assert not list(kept.parent.glob("*.rejected*"))


def test_losses_are_measured_on_images_at_their_own_size(
    toy_run: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch, graph: onnx.ModelProto, tmp_path: Path
) -> None:
    from gmtool_export import make
    from gmtool_export import run as run_module

    sizes: list[tuple[int, ...]] = []

    def recording(*arguments: Any, **more: Any) -> Runner:
        runner = onnx_runner(*arguments, **more)

        def run(images: UInt8Array) -> Mapping[str, Any]:
            sizes.append(images.shape)
            return runner(images)

        return run

    monkeypatch.setattr(run_module, "export_graph", lambda *_, **__: graph)
    monkeypatch.setattr(make, "onnx_runner", recording)
    run = Path(shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))
    bounds = run_module.ExportOptions(precision="int8", min_agreement=0.8, max_miou_drop=20)
    done = run_module.export_run(run, options=bounds)
    assert sizes[:4] == [(1, 48, 64, 3)] * 4
    made = done.records[0].quantization
    assert made is not None and made.judged_by == "mIoU" and made.first_loss is not None
    score = done.records[0].proofs[0].score
    assert score is not None and made.first_loss == pytest.approx(score.drop)
    assert np.isfinite(made.first_loss)
