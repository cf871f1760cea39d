"""`--shape`: a graph without shape arithmetic, which OpenCV runs too."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import Cli
from gmtool_export.graph.onnx import export_graph, finish, fix_shape, keep_outputs, precision_of
from gmtool_export.int8.quantize import measure_ranges, quantize_graph
from gmtool_serving.backends.base import fit_shape
from gmtool_serving.backends.onnx_runtime import OrtBackend

from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.artifact.shapes import BatchShape
from gmtool.artifact.verification import path_beside, read_verification
from gmtool.errors import BackendError, BackendMemoryError
from gmtool.images import UInt8Array, read_image
from gmtool.nn.checkpoint import load_network

SHAPE = BatchShape(1, 48, 64)
ARITHMETIC = {"Shape", "Range", "Gather", "Size", "ConstantOfShape", "Mod", "Floor", "Ceil"}


@pytest.fixture(scope="module")
def graph(toy_run: Path) -> onnx.ModelProto:
    return export_graph(load_network(toy_run, "best")[0])


@pytest.fixture(scope="module")
def images(toy_data: Path) -> list[UInt8Array]:
    return [read_image(path) for path in sorted((toy_data / "JPEGImages").iterdir())[:3]]


def run(model: onnx.ModelProto, images: UInt8Array) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    mask: np.ndarray = session.run(["mask"], {"image": images})[0]
    return mask


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_fixed_graph_is_the_same_model_without_shape_arithmetic(
    graph: onnx.ModelProto, images: list[UInt8Array], precision: str
) -> None:
    dynamic = (
        graph if precision == "fp32" else quantize_graph(graph, measure_ranges(graph, images), symmetric=False)
    )
    fixed = fix_shape(dynamic, SHAPE)
    assert precision_of(fixed) == precision
    assert not ARITHMETIC & {node.op_type for node in fixed.graph.node}
    assert len(fixed.graph.node) < 0.6 * len(dynamic.graph.node)
    shapes = [[side.dim_value for side in entry.type.tensor_type.shape.dim] for entry in fixed.graph.output]
    assert shapes == [[1, 48, 64], [1, 48, 64], [1, 6, 48, 64]]
    for image in images:
        assert (run(fixed, image[None]) == run(dynamic, image[None])).mean() > 0.999


def test_opencv_computes_the_same_mask(graph: onnx.ModelProto, images: list[UInt8Array], tmp_path: Path) -> None:
    fixed = keep_outputs(fix_shape(graph, SHAPE), ["mask"])
    onnx.save(fixed, tmp_path / "fixed.onnx")
    network = cv2.dnn.readNetFromONNX(str(tmp_path / "fixed.onnx"))
    for image in images:
        network.setInput(image[None], "image")
        mask = network.forward()
        assert (mask.reshape(48, 64) == run(graph, image[None])[0]).mean() > 0.999


def test_the_export_proves_and_describes_the_one_shape(
    cli: Cli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: onnx.ModelProto
) -> None:
    import shutil

    from gmtool_export import run as run_module

    monkeypatch.setattr(run_module, "export_graph", lambda *_, **__: graph)
    run_dir = Path(shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))
    code, out, err = cli(["export", run_dir, "--shape", "2x48x64"])
    assert code == 0, err
    path = Path(out.strip())
    assert path.name == "model_fp32_2x48x64.onnx"
    assert read_sealed_spec(path.read_bytes(), where=path).input.shape == (2, 48, 64)
    assert "fixed       2x48x64" in err
    code, out, _ = cli(["info", path])
    assert "uint8 [2, 48, 64, 3], no other shape" in " ".join(out.split())
    assert [batch.size for batch in read_verification(path_beside(path)).batches] == ["2x48x64"]
    assert cli(["verify", path])[0] == 0
    # One image is fewer than its batch; another size is not taken
    backend = OrtBackend(path, device="cpu", threads=1)
    assert backend.preferred_batch == 2
    assert backend.predict(np.zeros((1, 48, 64, 3), np.uint8)).mask.shape == (1, 48, 64)
    with pytest.raises(BackendError, match="32x24 pixels: the model was exported for 64x48 alone"):
        backend.predict(np.zeros((1, 24, 32, 3), np.uint8))


def test_batches_are_brought_to_a_fixed_one() -> None:
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(3, axis=3)
    assert fit_shape(images, (None, None, None)) is images
    assert fit_shape(images, (4, 1, 1))[:, 0, 0, 0].tolist() == [0, 1, 2, 2]
    with pytest.raises(BackendMemoryError, match="3 images at once: the model was exported for 2"):
        fit_shape(images, (2, 1, None))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--shape", "48x64"], "--shape 48x64: expected batch x height x width"),
        (["--shape", "1x0x64"], "--shape 1x0x64: expected batch x height x width"),
        (["--shape", "1x48x64", "--trt"], "--trt does not go with --shape"),
        (["--shape", "1x48x64", "--triton", "models"], "--triton does not go with --shape"),
    ],
)
def test_bad_shapes_are_a_wrong_usage(cli: Cli, toy_run: Path, options: list[str], expected: str) -> None:
    code, out, err = cli(["export", toy_run, *options])
    assert (code, out) == (2, "") and expected in err


def test_a_sealed_fixed_file_is_valid(graph: onnx.ModelProto, toy_model: Path) -> None:
    spec = read_sealed_spec(toy_model.read_bytes(), where=toy_model)
    onnx.checker.check_model(onnx.load_from_string(finish(fix_shape(graph, SHAPE), spec)), full_check=True)


def test_a_shape_beyond_memory_is_one_line(cli: Cli, toy_run: Path) -> None:
    code, out, err = cli(["export", toy_run, "--shape", "1x99999x99999"])
    assert (code, out) == (1, ""), err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "--shape 1x99999x99999: comparing 6 classes at it needs over 670.5 GiB" in line
    assert not list((toy_run / "export").glob("*99999*"))
