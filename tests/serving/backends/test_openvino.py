"""OpenVINO IR: converted, proven, sealed, run by the commands that run ONNX models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import Cli
from gmtool_export.openvino_ir import convert_ir
from gmtool_serving.backends.onnx_runtime import OrtBackend
from gmtool_serving.backends.opening import open_backend

from gmtool.artifact.openvino_ir import ir_sidecar_path, read_ir, weights_path, write_ir
from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.errors import ArtifactError, BackendError
from gmtool.images import UInt8Array, read_image

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def model(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model as IR."""
    content = toy_model.read_bytes()
    path = tmp_path_factory.mktemp("openvino") / "model_fp32.xml"
    write_ir(convert_ir(content, read_sealed_spec(content, where=toy_model)), path)
    return path


@pytest.fixture(scope="module")
def images(toy_data: Path) -> list[UInt8Array]:
    return [read_image(path) for path in sorted((toy_data / "JPEGImages").iterdir())[:4]]


def test_masks_are_those_of_onnx_runtime_at_any_shape(
    model: Path, toy_model: Path, images: list[UInt8Array]
) -> None:
    openvino, onnx = open_backend(model, threads=1), OrtBackend(toy_model, device="cpu", threads=1)
    assert openvino.description.startswith("openvino 20") and openvino.description.endswith(" CPU")
    assert openvino.spec == onnx.spec
    for batch in (np.stack(images[:3]), images[0][None, :33, :47], images[0][None]):
        expected, actual = onnx.predict(batch).mask, openvino.predict(batch).mask
        assert actual.dtype == np.uint8 and actual.shape == expected.shape
        assert (actual == expected).mean() > 0.999


def test_the_commands_take_it(model: Path, cli: Cli, toy_data: Path, tmp_path: Path) -> None:
    code, out, err = cli(["info", model])
    assert code == 0, err
    assert "OpenVINO model" in out and "unchanged since it was exported" in out
    code, _, err = cli(["predict", toy_data / "JPEGImages", "--out", tmp_path / "masks", "--model", model])
    assert code == 0, err
    assert len(list((tmp_path / "masks").glob("*.png"))) == 24


def test_benchmark_counts_its_weights(model: Path, toy_model: Path, cli: Cli, toy_data: Path) -> None:
    few = ["--limit", "1", "--rounds", "1", "--threads", "1", "--no-memory", "--json"]
    run = toy_model.parent.parent
    code, out, err = cli(["benchmark", run, model, "--images", toy_data / "JPEGImages", *few])
    assert code == 0, err
    first, row = json.loads(out)["models"]
    assert first["model"] == str(toy_model), "a run folder stands for its exported model"
    assert row["size_bytes"] == model.stat().st_size + weights_path(model).stat().st_size
    assert row["agreement"] > 0.999 and row["backend"].startswith("openvino")


def test_fp16_keeps_half_weights_and_gives_onnx_runtimes_masks(toy_model: Path, tmp_path: Path) -> None:
    make = onnx.helper.make_node
    half, single, byte = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    weights = np.random.default_rng(0).normal(size=(6, 3, 31, 31)).astype(np.float16)
    graph = onnx.helper.make_graph(
        [
            make("Cast", ["image"], ["values"], to=half),
            make("Transpose", ["values"], ["planes"], perm=[0, 3, 1, 2]),
            make("Conv", ["planes", "weights"], ["scores"], pads=[15] * 4),
            make("Cast", ["scores"], ["logits"], to=single),
            make("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
            make("Cast", ["best"], ["mask"], to=byte),
        ],
        "half",
        [onnx.helper.make_tensor_value_info("image", byte, ["batch", "height", "width", 3])],
        [onnx.helper.make_tensor_value_info("mask", byte, ["batch", "height", "width"])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    content = onnx.helper.make_model(
        graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 18)]
    ).SerializeToString()
    spec = replace(read_sealed_spec(toy_model.read_bytes(), where=toy_model), precision="fp16", outputs=("mask",))
    path = tmp_path / "model_fp16.xml"
    write_ir(convert_ir(content, spec), path)
    assert weights.nbytes <= weights_path(path).stat().st_size < weights.nbytes + 1000
    images = np.random.default_rng(1).integers(0, 9, (1, 33, 47, 3), dtype=np.uint8)
    (expected,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(
        ["mask"], {"image": images}
    )
    assert (open_backend(path, threads=1).predict(images).mask == expected).mean() > 0.99


def test_changed_and_missing_files_are_one_line(model: Path, tmp_path: Path) -> None:
    def copy() -> Path:
        for path in (model, weights_path(model), ir_sidecar_path(model)):
            shutil.copy(path, tmp_path)
        return tmp_path / model.name

    path = copy()
    content = bytearray(weights_path(path).read_bytes())
    content[100] ^= 1
    weights_path(path).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model_fp32\.bin was changed after it was exported"):
        open_backend(path)
    path = copy()
    path.write_text(path.read_text() + " ")
    with pytest.raises(
        ArtifactError, match=r"model_fp32\.xml was changed after it was exported.* or give --trust"
    ):
        open_backend(path)
    trusted = open_backend(path, trust=True, threads=1)
    assert trusted.model_sha256 != read_ir(model).sha256
    assert trusted.predict(np.zeros((1, 32, 32, 3), np.uint8)).mask.shape == (1, 32, 32)
    for missing in (weights_path, ir_sidecar_path):
        path = copy()
        missing(path).unlink()
        with pytest.raises(ArtifactError, match=r"no such file; an OpenVINO model of gmtool export --openvino is"):
            open_backend(path)
    path = copy()
    ir_sidecar_path(path).write_text("{}")
    with pytest.raises(ArtifactError, match=r"model_fp32\.xml\.json"):
        open_backend(path)


def test_cuda_is_refused(model: Path) -> None:
    with pytest.raises(BackendError, match="is an OpenVINO model, for processors"):
        open_backend(model, device="cuda")


def test_what_openvino_refuses_is_one_line(toy_model: Path) -> None:
    spec = read_sealed_spec(toy_model.read_bytes(), where=toy_model)
    with pytest.raises(ArtifactError, match="OpenVINO .* refuses the graph: "):
        convert_ir(b"no graph", spec)
