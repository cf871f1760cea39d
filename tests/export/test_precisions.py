"""fp16 and int8: what the files hold, how close they are, that TensorRT builds them, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import Cli
from gmtool_export.graph.onnx import export_graph, finish, keep_outputs, precision_of
from gmtool_export.int8.quantize import measure_ranges, quantize_graph
from gmtool_export.int8.sensitivity import SwitchedModel, agreement, layer_errors
from gmtool_export.run import ExportOptions, export_run
from gmtool_serving.backends.onnx_runtime import OrtBackend

from gmtool.artifact.checkpoints import read_sealed, sealed
from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.errors import NonFiniteError
from gmtool.images import UInt8Array, read_image
from gmtool.nn.checkpoint import load_network


@pytest.fixture(scope="module")
def run(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the toy run with its fp32 model."""
    copy = tmp_path_factory.mktemp("precisions") / "run"
    shutil.copytree(toy_run, copy)
    return copy


@pytest.fixture(scope="module")
def images(toy_data: Path) -> list[UInt8Array]:
    return [read_image(path) for path in sorted((toy_data / "JPEGImages").iterdir())[:8]]


@pytest.fixture(scope="module")
def graph(run: Path) -> onnx.ModelProto:
    """The fp32 graph with all outputs."""
    return export_graph(load_network(run, "best")[0])


def run_graph(model: onnx.ModelProto, outputs: list[str], batch: UInt8Array) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given: list[np.ndarray] = session.run(outputs, {"image": batch})
    return given


def test_fp16_is_a_half_core_between_float32_islands(run: Path, toy_model: Path) -> None:
    done = export_run(run, options=ExportOptions(precision="fp16", outputs=("mask", "confidence")))
    assert done.path == run / "export/model_fp16_confidence.onnx"
    model = onnx.load(done.path)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    types = {entry.name: entry.data_type for entry in model.graph.initializer}
    assert {types[node.input[1]] for node in model.graph.node if node.op_type == "Conv"} == {half}
    (resize,) = [node for node in model.graph.node if node.op_type == "Resize"]
    casts = {node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"}
    assert casts[resize.input[0]] == single
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert casts[softmax.input[0]] == single
    assert done.path.stat().st_size < 0.6 * toy_model.stat().st_size
    record = done.records[0]
    assert record.precision == "fp16"
    assert record.headroom is not None and record.headroom.value < 65504
    assert min(row.agreement for row in done.parity) >= 0.995
    # The record of what was there before stays
    kept = json.loads((run / "export/export.json").read_text())["artifacts"]
    assert list(kept) == ["model_fp16_confidence.onnx", "model_fp32.onnx"]
    report = (run / "export/export.md").read_text()
    assert "| model_fp32.onnx | fp32 |" in report and "| model_fp16_confidence.onnx | fp16 |" in report


def test_confidence_is_the_largest_probability(graph: onnx.ModelProto, images: list[UInt8Array]) -> None:
    mask, confidence, logits = run_graph(graph, ["mask", "confidence", "logits"], images[0][None])
    probabilities = torch.softmax(torch.from_numpy(logits), dim=1).amax(dim=1)
    assert confidence.dtype == np.uint8
    assert np.abs(confidence - 255 * probabilities.numpy()).max() <= 0.501
    assert (mask == logits.argmax(axis=1)).all()


def test_int8_keeps_the_classifier_and_says_what_else(
    cli: Cli, run: Path, toy_model: Path, images: list[UInt8Array]
) -> None:
    checkpoint = run / "checkpoints/last.json"
    flags = ["--precision", "int8", "--output", "logits", "--min-agreement", "80", "--max-miou-drop", "20"]
    code, out, err = cli(["export", checkpoint, *flags, "--json"])
    assert code == 0, err
    (record,) = json.loads(out)
    assert record["file"] == "model_int8_logits.onnx"
    assert record["checkpoint"] == "last"
    made = record["quantization"]
    assert made["float_layers"][0] == "network.decoder.classifier"
    assert made["quantized_layers"] + len(made["float_layers"]) == 26
    assert made["calibration"] == "8 labeled and 12 unlabeled training images"
    content = (run / "export" / record["file"]).read_bytes()
    assert read_sealed_spec(content, where=run).precision == "int8"
    model = onnx.load_from_string(content)
    types = {entry.name: entry.data_type for entry in model.graph.initializer}
    dequantized = {types.get(node.input[0]) for node in model.graph.node if node.op_type == "DequantizeLinear"}
    assert onnx.TensorProto.INT8 in dequantized and onnx.TensorProto.INT32 not in dequantized
    assert len(content) < 0.6 * toy_model.stat().st_size
    backend = OrtBackend(run / "export" / record["file"], device="cpu", threads=1)
    prediction = backend.predict(images[0][None])
    assert prediction.logits is not None and prediction.logits.shape == (1, 6, 48, 64)
    assert "convolutions in int8; in float32: network.decoder.classifier" in err


def test_tensorrt_takes_symmetric_int8_and_a_plan_is_written(cli: Cli, run: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    flags = ["--precision", "int8", "--min-agreement", "80", "--max-miou-drop", "20"]
    shapes = ["--min-shape", "1x32x32", "--max-shape", "2x96x128"]
    code, out, err = cli(["export", run, "--trt", "--trt-runtime", "tensorrt_rtx", *flags, *shapes])
    assert code == 0, err
    (plan,) = out.split()
    assert plan.endswith("export/model_int8.rtx.plan")
    sidecar = json.loads(Path(plan + ".json").read_text())
    assert sidecar["profiles"][0]["opt"] == {"batch": 2, "height": 48, "width": 64}
    assert not (run / "export/model_int8.onnx").exists()
    record = json.loads((run / "export/export.json").read_text())["artifacts"]["model_int8.rtx.plan"]
    assert record["quantization"]["symmetric"] is True
    assert "onnxruntime" in record["proofs"][0]["runtime"]


def test_symmetric_int8_has_zero_points_of_zero_and_one_rounding_an_activation(
    graph: onnx.ModelProto, images: list[UInt8Array]
) -> None:
    ranges = measure_ranges(graph, images[:3])
    model = quantize_graph(graph, ranges, symmetric=True)
    assert precision_of(model) == "int8" and precision_of(graph) == "fp32"
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    quantizing = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    for node in quantizing:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    convolved = {name for node in model.graph.node if node.op_type == "Conv" for name in node.output}
    rectified = {node.input[0] for node in model.graph.node if node.op_type == "Relu"}
    assert convolved & rectified
    assert not convolved & rectified & {node.input[0] for node in quantizing}
    onnx.checker.check_model(model)


def test_the_layer_that_loses_most_is_found_and_left_in_float32(
    graph: onnx.ModelProto, images: list[UInt8Array]
) -> None:
    """The range of one layer's input is made a thousand times too large: in int8 nothing is left of it."""
    ranges = measure_ranges(graph, images[:3])
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    spoilt = next(node for node in convolutions if node.input[1] == "network.decoder.mitrans1.up.conv.weight")
    low, high = ranges[spoilt.input[0]].range_value
    ranges[spoilt.input[0]].lowest, ranges[spoilt.input[0]].highest = low * 1000, high * 1000
    switched = SwitchedModel(graph, quantize_graph(graph, ranges, symmetric=False, operators=["Conv"]))
    batch = np.stack(images[:2])
    none = np.zeros(len(switched.layers), dtype=bool)
    (expected,) = run_graph(graph, ["logits"], batch)
    np.testing.assert_allclose(switched.logits(batch, none), expected, atol=1e-4)
    worst = max(layer_errors(switched, images), key=lambda layer: layer.error)
    assert worst.title == "network.decoder.mitrans1.up.conv" and worst.changed > 0
    always = switched.layers[-1:]
    assert agreement(switched, images, float_layers=[*always, worst.node]) > 0.9


def test_case_39_scores_that_are_not_finite_are_no_mask_of_class_0(
    run: Path, toy_model: Path, graph: onnx.ModelProto, images: list[UInt8Array], tmp_path: Path
) -> None:
    """One image of a batch overflows: its mask is label 255 all over, the other's is as it was."""
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    (bias,) = [entry for entry in broken.graph.initializer if entry.name == "network.decoder.classifier.bias"]
    values = onnx.numpy_helper.to_array(bias).copy()
    spec = read_sealed_spec(toy_model.read_bytes(), where=toy_model)
    for number, what in ((np.nan, "NaN"), (np.inf, "infinity")):
        values[2] = number
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        for outputs in (("mask", "confidence"), ("logits",)):
            path = tmp_path / f"{what}-{outputs[0]}.onnx"
            path.write_bytes(
                finish(
                    broken,
                    type(spec).from_json(
                        json.dumps(json.loads(spec.to_json()) | {"outputs": outputs}), where="test"
                    ),
                )
            )
            with pytest.raises(NonFiniteError, match=r"scores are not finite \(NaN or infinity\)"):
                OrtBackend(path, device="cpu", threads=1).predict(images[0][None])
        mask, confidence = run_graph(
            keep_outputs(broken, ["mask", "confidence"]), ["mask", "confidence"], images[0][None]
        )
        assert (mask == 255).all() and not confidence.any()


REFUSALS = {
    "images": (["--images", "nowhere"], "--images nowhere: no such folder"),
    "calibration": (["--precision", "int8", "--calibration", "nowhere"], "--calibration nowhere: no such folder"),
    "strict": (["--precision", "fp16", "--min-agreement", "100"], "expected 100.00% (--min-agreement): nothing"),
    "shape": (["--trt", "--min-shape", "1x32"], "--min-shape 1x32: expected batch x height x width"),
    "order": (
        ["--trt", "--min-shape", "1x99x99", "--opt-shape", "1x32x32", "--max-shape", "1x99x99"],
        "expected min <= opt <= max",
    ),
}


@pytest.mark.parametrize("mistake", REFUSALS)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    cli: Cli, toy_run: Path, tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, expected = REFUSALS[mistake]
    shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(["export", "run", *flags])
    assert (code, out) == (2 if mistake in ("shape", "order") else 1, ""), err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and expected in errors[0]
    assert not list(Path("run").glob("export/*"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format_version": 99}, "written by another version of gmtool"),
        ({"classes": {"names": ["one", "two"]}}, "does not fit the network of best.json: "),
    ],
)
def test_a_checkpoint_of_another_version_or_class_count_is_one_line(
    cli: Cli, toy_run: Path, tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    checkpoint = tmp_path / "run/checkpoints/best.json"
    checkpoint.write_text(sealed(read_sealed(checkpoint) | change))
    code, out, err = cli(["export", checkpoint])
    assert (code, out) == (1, "")
    assert expected in err and err.count("error: ") == 1


def test_options_that_do_not_belong_together_are_a_usage_error(cli: Cli, toy_run: Path) -> None:
    for flags in (
        ["--min-shape", "1x32x32"],
        ["--workspace", "64"],
        ["--no-parity", "--min-agreement", "99"],
        ["--calibration", "images"],
        ["--precision", "fp64"],
    ):
        code, _, err = cli(["export", toy_run, *flags])
        assert code == 2, err
    code, _, err = cli(["export", toy_run / "checkpoints/best.json", "--checkpoint", "last"])
    assert code == 2, err


def test_other_images_may_prove_a_model_whose_data_has_moved(
    cli: Cli, toy_run: Path, toy_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace(str(toy_data), "/nowhere"))
    code, _, err = cli(["export", tmp_path / "run"])
    assert code == 1 and "or give --images DIR" in err
    code, out, err = cli(["export", tmp_path / "run", "--images", toy_data / "JPEGImages", "--allow-few-classes"])
    assert code == 0, err
    assert out.strip() == str(tmp_path / "run/export/model_fp32.onnx")
    assert "mIoU not compared" in err
    assert "not scored: " in (tmp_path / "run/export/export.md").read_text()
