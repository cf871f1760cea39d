"""What `gmtool info` can tell of a file, and what it refuses to tell anything of."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import pytest
from conftest import Cli

from gmtool.artifact.describe import describe
from gmtool.artifact.onnx_wire import refers_to_other_files
from gmtool.artifact.sealed_onnx import SHA256_KEY, SPEC_KEY, UNSEALED, read_sealed_spec, seal
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.artifact.tensorrt_plan import Plan, PlanSpec, write_plan
from gmtool.errors import ArtifactError, GmtoolError
from gmtool.files import sha256_of_file


def test_an_onnx_model_tells_all_that_its_spec_holds(toy_model: Path, cli: Cli) -> None:
    spec = read_sealed_spec(toy_model.read_bytes(), where=toy_model)
    code, out, err = cli(["info", toy_model, "--json"])
    assert code == 0, err
    value = json.loads(out)
    assert value["kind"] == "onnx"
    assert value["sha256"] == sha256_of_file(toy_model)
    assert {key: value[key] for key in json.loads(spec.to_json())} == json.loads(spec.to_json())
    code, out, err = cli(["info", toy_model])
    assert code == 0, err
    for text in (
        "fp32",
        "encoder toy, output stride 8, attention at 1/8 of",
        "guidedmix, input scale 1",
        "mask: uint8 [N, H, W]",
        "#e69f00",
        "triangle",
        "ignored",
    ):
        assert text in out


def test_a_plan_tells_what_it_runs_on(toy_model: Path, tmp_path: Path, cli: Cli) -> None:
    content = b"as TensorRT wrote it"
    spec = PlanSpec(
        artifact=replace(
            read_sealed_spec(toy_model.read_bytes(), where=toy_model), outputs=("mask", "confidence")
        ),
        plan_sha256=hashlib.sha256(content).hexdigest(),
        onnx_sha256=sha256_of_file(toy_model),
        flavour="tensorrt_rtx",
        version="1.7.1.116",
        gpu=None,
        compute_capabilities=("8.6", "12.0"),
        platform="linux-x86_64",
        hardware_compatible=False,
        version_compatible=False,
        profiles=(ShapeProfile(BatchShape(1, 32, 32), BatchShape(1, 96, 128), BatchShape(4, 512, 512)),),
        workspace_bytes=None,
        created="2025-01-01T00:00:00+00:00",
    )
    path = tmp_path / "model_fp32.rtx.plan"
    write_plan(Plan(content, spec), path)
    code, out, err = cli(["info", path])
    assert code == 0, err
    for text in ("TensorRT-RTX 1.7.1.116", "8.6, 12.0", "opt 1x96x128", "confidence: uint8", "triangle"):
        assert text in out
    of_sidecar = describe(tmp_path / "model_fp32.rtx.plan.json")
    assert of_sidecar.kind == "plan"
    assert of_sidecar.value["profiles"][0]["max"] == {"batch": 4, "height": 512, "width": 512}
    path.write_bytes(content + b"!")
    for changed in (path, tmp_path / "model_fp32.rtx.plan.json"):
        with pytest.raises(ArtifactError, match="is not the plan that"):
            describe(changed)


def test_runs_checkpoints_reports_and_classes_tell_what_they_are(
    toy_run: Path, toy_model: Path, toy_data: Path
) -> None:
    best = json.loads((toy_run / "checkpoints/best.json").read_text())
    run = describe(toy_run)
    assert run.kind == "run"
    assert set(run.value["checkpoints"]) >= {"best", "last"}
    assert run.facts["exported"] == toy_model.name
    for path in (toy_run / "checkpoints/best.json", toy_run / "checkpoints" / best["weights"]):
        checkpoint = describe(path)
        assert checkpoint.kind == "checkpoint"
        assert checkpoint.value["sha256"] == best["sha256"]
        assert checkpoint.classes is not None and "star" in checkpoint.classes.names
    report = describe(toy_run / "report.json")
    assert (report.kind, report.value["num_images"]) == ("report", 4)
    exports = describe(toy_model.parent / "export.json")
    assert "unchanged" in exports.facts[toy_model.name]
    classes = describe(toy_data / "classes.json")
    assert classes.kind == "classes" and classes.classes == run.classes


def test_case_29_weights_that_are_not_the_checkpoints_are_named(toy_run: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_run, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    weights = folder / json.loads((folder / "best.json").read_text())["weights"]
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for path in (tmp_path / "run", folder / "best.json", weights):
        with pytest.raises(GmtoolError, match=f"{weights.name} is damaged"):
            describe(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.onnx", b"", "is not a model that gmtool export wrote"),
        ("x.onnx", b"<html>", "is not a model that gmtool export wrote"),
        ("x.json", b"<html>", "not JSON, or cut short"),
        ("x.json", b"[1, 2", "not JSON, or cut short"),
        ("x.json", b"{}", "is not a file of gmtool"),
        ("x.json", b'{"confusion_matrix": [], "provenance": 3}', "damaged"),
        ("x.json", b'{"weights": "w", "iteration": 3}', "damaged"),
        ("x.plan", b"plan", "has no sidecar x.plan.json"),
        ("x.safetensors", b"", "no checkpoint JSON in its folder names it"),
        ("x.pth", b"\x80\x02}q\x00.", "is not a model that gmtool export wrote"),
        (None, None, "no such file"),
    ],
)
def test_case_36_a_foreign_file_is_one_line(
    cli: Cli, tmp_path: Path, name: str | None, content: bytes | None, expected: str
) -> None:
    path = tmp_path / (name or "nowhere")
    if content is not None:
        path.write_bytes(content)
    code, out, err = cli(["info", path])
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ") and expected in line
    code, _, err = cli(["info", tmp_path])
    assert code == 1 and "is not a run folder" in err


def test_case_36_weights_in_other_files_are_refused_even_under_a_right_hash(
    toy_model: Path, tmp_path: Path
) -> None:
    """ONNX Runtime follows a hard link to a file anywhere; the seal is no secret."""
    model = onnx.load(toy_model)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {SPEC_KEY: metadata[SPEC_KEY], SHA256_KEY: UNSEALED})
    (tmp_path / "secret").write_bytes(bytes(2**20))
    (tmp_path / "weights").hardlink_to(tmp_path / "secret")
    tensor = model.graph.initializer[0]
    for location in ("weights", "../weights", "/etc/passwd"):
        tensor.data_location = onnx.TensorProto.EXTERNAL
        onnx.external_data_helper.set_external_data(tensor, location)
        path = tmp_path / "model.onnx"
        path.write_bytes(seal(model.SerializeToString()))
        with pytest.raises(ArtifactError, match="has weights in other files"):
            read_sealed_spec(path.read_bytes(), where=path)


def constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], ["c"], value=tensor)


def test_case_36_weights_in_other_files_are_found_wherever_a_model_can_have_them() -> None:
    inside = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "t")
    outside = onnx.TensorProto.FromString(inside.SerializeToString())
    outside.data_location = onnx.TensorProto.EXTERNAL
    onnx.external_data_helper.set_external_data(outside, "elsewhere")
    for tensor, expected in ((inside, False), (outside, True)):
        branch = onnx.helper.make_graph([constant(tensor)], "branch", [], [])
        inner = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
        function = onnx.helper.make_function(
            "d", "f", [], ["c"], [constant(tensor)], [onnx.helper.make_opsetid("", 18)]
        )
        sparse = onnx.helper.make_sparse_tensor(tensor, onnx.helper.make_tensor("i", 7, [4], [0, 1, 2, 3]), [9])
        graphs = [
            onnx.helper.make_graph([], "g", [], [], initializer=[tensor]),
            onnx.helper.make_graph([], "g", [], [], sparse_initializer=[sparse]),
            onnx.helper.make_graph([constant(tensor)], "g", [], []),
            onnx.helper.make_graph([inner], "g", [], []),
        ]
        models = [onnx.helper.make_model(graph) for graph in graphs]
        models.append(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []), functions=[function]))
        for model in models:
            assert refers_to_other_files(model.SerializeToString()) is expected


def test_info_needs_neither_torch_nor_a_runtime(toy_model: Path, toy_run: Path) -> None:
    script = (
        "import sys; from gmtool.cli.app import make_app; app = make_app([]); "
        f"[app(['info', path], standalone_mode=False) for path in ({str(toy_model)!r}, {str(toy_run)!r})]; "
        "print([name for name in ('torch', 'numpy', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
