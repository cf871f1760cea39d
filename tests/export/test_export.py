import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from gmtool_export import parity
from gmtool_export.deploy import DeployModel
from gmtool_export.run import export_run

from gmtool.artifact import read_sealed_spec
from gmtool.errors import ArtifactError, CheckpointError, DataError, ParityError
from gmtool.files import sha256_of_file
from gmtool.nn.checkpoint import load_network


def test_the_graph_is_what_the_architecture_promises(toy_model: Path) -> None:
    model = onnx.load(toy_model)
    onnx.checker.check_model(model, full_check=True)
    (image,), (mask,) = model.graph.input, model.graph.output
    uint8 = onnx.TensorProto.UINT8
    assert (image.name, image.type.tensor_type.elem_type) == ("image", uint8)
    assert (mask.name, mask.type.tensor_type.elem_type) == ("mask", uint8)
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert dims == ["batch", "height", "width", 3]
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not any("image_classifier" in tensor.name for tensor in model.graph.initializer)


@pytest.mark.parametrize("shape", [(2, 160, 224), (1, 97, 133), (3, 40, 72), (1, 8, 8), (1, 1, 1), (1, 301, 7)])
def test_masks_equal_pytorchs_at_every_shape(toy_run: Path, toy_model: Path, shape: tuple[int, ...]) -> None:
    network, _ = load_network(toy_run, "best")
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = DeployModel(network)(torch.from_numpy(images)).numpy()
    (masks,) = ort.InferenceSession(toy_model, providers=["CPUExecutionProvider"]).run(None, {"image": images})
    assert masks.shape == shape
    assert (masks == expected).mean() >= 0.999


def test_the_file_knows_what_it_is(toy_run: Path, toy_model: Path) -> None:
    spec = read_sealed_spec(toy_model.read_bytes(), where=toy_model)
    _, checkpoint = load_network(toy_run, "best")
    assert spec.classes == checkpoint.classes
    assert (spec.precision, spec.opset, spec.output_stride, spec.attention_stride) == ("fp32", 18, 8, 8)
    assert spec.provenance.weights_sha256 == checkpoint.sha256
    assert spec.provenance.iteration == checkpoint.iteration
    metadata = ort.InferenceSession(toy_model).get_modelmeta().custom_metadata_map
    assert set(metadata) == {"gmtool.spec", "gmtool.sha256"}


def test_export_json_records_the_proof(toy_model: Path) -> None:
    record = json.loads((toy_model.parent / "export.json").read_text())
    assert record["sha256"] == sha256_of_file(toy_model)
    assert [row["shape"] for row in record["parity"]] == ["traced", "smaller", "odd", "batch of 3", "own size"]
    assert all(row["agreement"] >= 0.999 for row in record["parity"])


@pytest.fixture
def run_copy(toy_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    return tmp_path / "run"


def test_case_38_a_model_that_differs_is_refused_and_not_written(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exported graph is that of other weights: the gate must see it."""

    class Other(DeployModel):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            masks: torch.Tensor = super().forward(image)
            masks[..., 0, :] += 1  # one row of 64 to 256
            return masks

    monkeypatch.setattr(parity, "DeployModel", Other)
    with pytest.raises(ParityError, match=r"agrees with PyTorch on 9\d\.\d+% of the pixels at .* expected 99.9%"):
        export_run(run_copy, name="best", image_dir=None)
    assert not (run_copy / "export").exists()


@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_case_37_a_changed_model_file_is_refused(toy_model: Path, where: str) -> None:
    content = bytearray(toy_model.read_bytes())
    content[{"start": 20, "middle": len(content) // 2, "end": -1}[where]] ^= 1
    with pytest.raises(ArtifactError, match="was changed|is not a model|cut short"):
        read_sealed_spec(bytes(content), where=toy_model)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\x0a" * 50])
def test_case_36_a_foreign_file_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match="is not a model that gmtool export wrote"):
        read_sealed_spec(content, where=Path("x.onnx"))


def test_a_truncated_model_is_refused(toy_model: Path) -> None:
    content = toy_model.read_bytes()
    for twentieth in range(20):
        with pytest.raises(ArtifactError):
            read_sealed_spec(content[: len(content) * twentieth // 20], where=toy_model)


def test_other_images_may_prove_the_model(run_copy: Path, toy_data: Path) -> None:
    shutil.copytree(toy_data / "JPEGImages", run_copy / "images")
    config = run_copy / "config.toml"
    config.write_text(config.read_text().replace(str(toy_data), "/nowhere"))
    with pytest.raises(DataError, match="--images DIR"):
        export_run(run_copy, name="last", image_dir=None)
    result = export_run(run_copy, name="last", image_dir=run_copy / "images")
    assert result.path == run_copy / "export" / "model_fp32.onnx"
    with pytest.raises(DataError, match="no image in it"):
        export_run(run_copy, name="last", image_dir=run_copy / "tensorboard")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a trained run"):
        export_run(tmp_path, name="best", image_dir=None)
    with pytest.raises(CheckpointError, match="does not exist"):
        export_run(tmp_path / "nowhere", name="best", image_dir=None)
