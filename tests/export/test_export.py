import json
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import Cli
from gmtool_export.graph.deploy import DeployModel
from gmtool_export.run import ExportOptions, export_run

from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.errors import ArtifactError, CheckpointError, ConfigError
from gmtool.files import sha256_of_file
from gmtool.nn.checkpoint import Checkpoint, load_network
from gmtool.nn.model import GuidedMixNet


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
        expected = DeployModel(network)(torch.from_numpy(images))[0].numpy()
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
    record = json.loads((toy_model.parent / "export.json").read_text())["artifacts"]["model_fp32.onnx"]
    assert record["sha256"] == sha256_of_file(toy_model)
    assert (record["precision"], record["checkpoint"], record["bytes"]) == (
        "fp32",
        "best",
        toy_model.stat().st_size,
    )
    (proof,) = record["proofs"]
    assert [row["shape"] for row in proof["rows"]] == ["traced", "smaller", "odd", "batch of 3", "own size"]
    for row in proof["rows"]:
        assert row["agreement"] >= 0.999
        assert row["unexplained"] == 0
        assert row["max_difference"] <= 1e-3 * row["max_logit"]
    assert proof["classes_predicted"] >= 3
    score = proof["score"]
    assert (score["num_images"], score["num_listed"]) == (4, 4)
    assert abs(score["drop_points"]) <= 0.05
    assert "| model_fp32.onnx | fp32 |" in (toy_model.parent / "export.md").read_text()


def test_the_score_of_pytorch_is_that_of_training(toy_run: Path, toy_model: Path) -> None:
    record = json.loads((toy_model.parent / "export.json").read_text())["artifacts"]["model_fp32.onnx"]
    _, checkpoint = load_network(toy_run, "best")
    assert record["proofs"][0]["score"]["miou_pytorch"] == pytest.approx(checkpoint.miou, abs=1e-3)


def test_the_file_tells_nothing_of_the_machine_that_made_it(toy_model: Path) -> None:
    content = toy_model.read_bytes()
    for word in (b"site-packages", b"stack_trace", b'File "'):
        assert word not in content


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


def test_case_38_a_network_that_predicts_one_class_is_not_exported_unless_it_is_accepted(
    cli: Cli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is compared with agrees: the comparison would pass and mean nothing."""
    shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))

    def load_one_class(run_dir: Path, name: str) -> tuple[GuidedMixNet, Checkpoint]:
        network, checkpoint = load_network(run_dir, name)
        with torch.no_grad():
            network.get_parameter("classifier.bias")[1] = 1e6
        return network, checkpoint

    monkeypatch.setattr("gmtool_export.run.load_network", load_one_class)
    code, out, err = cli(["export", tmp_path / "run"])
    assert (code, out) == (1, "")
    assert re.search(
        r"error: the network gives only 1 of its \d classes .*--allow-few-classes", err.replace("\n", " ")
    )
    assert not (tmp_path / "run" / "export").exists()
    accepted = ConfigError("it came as far as the graph")
    monkeypatch.setattr("gmtool_export.run.export_graph", Mock(side_effect=accepted))
    with pytest.raises(ConfigError, match="as far as the graph"):
        export_run(tmp_path / "run", options=ExportOptions(allow_few_classes=True))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a trained run"):
        export_run(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        export_run(tmp_path / "nowhere")


def test_a_file_that_is_no_checkpoint_is_named(cli: Cli, toy_run: Path) -> None:
    for source in (toy_run / "report.json", toy_run / "checkpoints/iteration-9.json"):
        code, _, err = cli(["export", source])
        assert code == 1
        assert f"error: {source} is no checkpoint: expected a run folder, or RUN/checkpoints/NAME.json" in err


def test_a_missing_extra_is_one_line(cli: Cli, toy_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("gmtool_export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = cli(["export", toy_run])
    assert code == 1
    assert 'error: exporting needs onnx, which is not installed: pip install "gmtool[export]"' in err
