"""A model repository that a Triton server would load: read back through Triton's own published schema."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from gmtool_export.targets import TritonTarget
from gmtool_export.triton.config import TritonOptions
from gmtool_export.triton.repository import export_triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

import gmtool
from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.artifact.spec import ArtifactSpec
from gmtool.artifact.tensorrt_plan import Plan, PlanSpec, read_plan, write_plan
from gmtool.errors import ArtifactError, ConfigError, UsageError
from gmtool.files import temporary_path, write_atomically

PROFILE = ShapeProfile(BatchShape(1, 64, 64), BatchShape(2, 96, 128), BatchShape(4, 256, 256))


def read(folder: Path) -> Any:
    """Parse a model's configuration as the server does."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def spec(toy_model: Path) -> ArtifactSpec:
    return read_sealed_spec(toy_model.read_bytes(), where=toy_model)


@pytest.fixture
def plan(spec: ArtifactSpec, tmp_path: Path) -> Callable[..., Path]:
    """Writes a plan for a GPU. What is in it is TensorRT's business; what lies beside it is real."""

    def write(capability: str, profiles: tuple[ShapeProfile, ...] = (PROFILE,), **other: Any) -> Path:
        content = f"plan for {capability} {other}".encode()
        plan_spec = PlanSpec(
            artifact=spec,
            plan_sha256=hashlib.sha256(content).hexdigest(),
            onnx_sha256="0" * 64,
            flavour="tensorrt",
            version="10.14.1.48",
            gpu="a GPU",
            compute_capabilities=(capability,),
            platform="linux-x86_64",
            hardware_compatible=capability.endswith("+"),
            version_compatible=False,
            profiles=profiles,
            workspace_bytes=None,
            created="2025-01-01T00:00:00+00:00",
        )
        folder = tmp_path / f"plans-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        write_plan(Plan(content, replace(plan_spec, **other)), folder / "model_fp32.plan")
        return folder / "model_fp32.plan"

    return write


def test_the_configuration_agrees_with_the_onnx_model(toy_model: Path, spec: ArtifactSpec, tmp_path: Path) -> None:
    made = export_triton([toy_model], tmp_path / "models", name="shapes")
    config = read(made.folder)
    assert (config.name, config.backend, config.platform) == ("shapes", "onnxruntime", "")
    session = ort.InferenceSession(made.folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    types = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "tensor(float)"}
    for configured, actual in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert [tensor.name for tensor in configured] == [tensor.name for tensor in actual]
        for tensor, real in zip(configured, actual, strict=True):
            assert types[schema.DataType.Name(tensor.data_type)] == real.type
            # Triton puts the batch dimension before the configured ones
            assert [-1, *tensor.dims] == [size if isinstance(size, int) else -1 for size in real.shape]
    (output,) = config.output
    assert (made.folder / output.label_filename).read_text().splitlines() == list(spec.classes.names)
    assert json.loads(config.parameters["gmtool.classes"].string_value) == spec.classes.to_dict()
    assert config.parameters["cudnn_conv_algo_search"].string_value == "1"
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})
    assert config.max_batch_size == 8
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [entry.batch_size for entry in config.model_warmup] == [1, 8]
    assert all(list(entry.inputs["image"].dims) == [512, 512, 3] for entry in config.model_warmup)
    assert (made.folder / "1" / "model.onnx").read_bytes() == toy_model.read_bytes()
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"shapes"}


def test_options_are_what_the_server_is_told(toy_model: Path, tmp_path: Path) -> None:
    options = TritonOptions(max_batch=16, instances=2, queue_delay_us=500, warmup=((360, 480), (720, 960)))
    config = read(export_triton([toy_model], tmp_path, name="one", options=options).folder)
    assert config.max_batch_size == 16
    assert [group.count for group in config.instance_group] == [2]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    names = [entry.name for entry in config.model_warmup]
    assert names == ["1x360x480", "16x360x480", "1x720x960", "16x720x960"]
    single = TritonOptions(max_batch=1, warmup=())
    config = read(export_triton([toy_model], tmp_path, name="two", options=single).folder)
    assert not config.HasField("dynamic_batching")
    assert not config.model_warmup


def test_every_output_is_described(
    toy_model: Path, spec: ArtifactSpec, tmp_path: Path, plan: Callable[..., Path]
) -> None:
    several = plan("8.6", artifact=replace(spec, outputs=("mask", "confidence")))
    config = read(export_triton([several], tmp_path / "models", name="several").folder)
    assert [(output.name, list(output.dims)) for output in config.output] == [
        ("mask", [-1, -1]),
        ("confidence", [-1, -1]),
    ]
    assert [output.label_filename for output in config.output] == ["labels.txt", ""]
    logits = plan("8.6", artifact=replace(spec, outputs=("logits",)))
    (output,) = read(export_triton([logits], tmp_path / "models", name="logits").folder).output
    assert (output.data_type, list(output.dims)) == (schema.TYPE_FP32, [6, -1, -1])


def test_each_gpu_gets_its_plan(plan: Callable[..., Path], tmp_path: Path) -> None:
    made = export_triton([plan("8.6"), plan("9.0"), plan("8.0+")], tmp_path / "models", name="gpus")
    config = read(made.folder)
    assert (config.platform, config.backend) == ("tensorrt_plan", "")
    assert dict(config.cc_model_filenames) == {"8.6": "model_sm86.plan", "9.0": "model_sm90.plan"}
    assert config.default_model_filename == "model_sm80plus.plan"
    assert [schema.ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group] == ["KIND_GPU"]
    assert config.max_batch_size == 4
    assert [entry.name for entry in config.model_warmup] == ["1x96x128", "4x96x128"]
    for name in made.files:
        assert read_plan(made.folder / "1" / name).spec is not None  # with its sidecar, and unchanged


def test_several_profiles_are_all_used(plan: Callable[..., Path], tmp_path: Path) -> None:
    large = ShapeProfile(BatchShape(1, 256, 256), BatchShape(1, 512, 512), BatchShape(2, 1024, 1024))
    config = read(export_triton([plan("8.6", (PROFILE, large))], tmp_path / "models", name="two").folder)
    assert [list(group.profile) for group in config.instance_group] == [["0", "1"]]
    assert config.max_batch_size == 2  # what every profile takes


def test_a_new_version_keeps_the_old_ones_and_what_the_owner_has_set(toy_model: Path, tmp_path: Path) -> None:
    first = export_triton([toy_model], tmp_path, name="shapes")
    path = first.folder / "config.pbtxt"
    path.write_text("# ours\n" + path.read_text().replace("microseconds: 2000", "microseconds: 77"))
    before = tree(tmp_path)
    second = export_triton([toy_model], tmp_path, name="shapes")
    assert (second.version, second.kept) == (2, (1,))
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before  # with its comment
    assert set(after) - set(before) == {"shapes/2/model.onnx"}
    third = export_triton([toy_model], tmp_path, name="shapes", options=TritonOptions(max_batch=2))
    config = read(third.folder)
    assert third.kept == (1, 2)
    assert config.max_batch_size == 2
    assert config.dynamic_batching.max_queue_delay_microseconds == 77
    assert [entry.batch_size for entry in config.model_warmup] == [1, 2]


MISTAKES: dict[str, tuple[Callable[[Callable[..., Path], Path], list[Path]], str]] = {
    "nothing": (lambda plan, onnx: [], "one ONNX file, or plans"),
    "two models": (lambda plan, onnx: [onnx, onnx], "one ONNX file, or plans"),
    "both kinds": (lambda plan, onnx: [onnx, plan("8.6")], "one ONNX file, or plans"),
    "no file": (lambda plan, onnx: [Path("nowhere.onnx")], "no such file"),
    "rtx": (lambda plan, onnx: [plan("8.6", flavour="tensorrt_rtx")], "which Triton does not load"),
    "one GPU twice": (lambda plan, onnx: [plan("8.6"), plan("8.6")], "the same compute capability 8.6"),
    "two versions": (
        lambda plan, onnx: [plan("8.6"), plan("9.0", version="11.4.0")],
        "differ in their TensorRT version",
    ),
    "no single images": (
        lambda plan, onnx: [plan("8.6", (ShapeProfile(PROFILE.opt, PROFILE.opt, PROFILE.max),))],
        "takes at least 2 images",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_files_that_make_no_model_are_refused(
    plan: Callable[..., Path], toy_model: Path, tmp_path: Path, mistake: str
) -> None:
    choose, expected = MISTAKES[mistake]
    with pytest.raises((ArtifactError, ConfigError), match=expected):
        export_triton(choose(plan, toy_model), tmp_path / "models", name="x")
    assert not (tmp_path / "models").exists()


def test_what_the_plans_do_not_take_is_refused(plan: Callable[..., Path], tmp_path: Path) -> None:
    for options, expected in (
        (TritonOptions(max_batch=5), "--max-batch 5: the plan for 8.6 takes at most 4"),
        (TritonOptions(warmup=((512, 64),)), "--warmup 512x64: the plan for 8.6 takes min 1x64x64"),
    ):
        with pytest.raises(ConfigError, match=expected):
            export_triton([plan("8.6")], tmp_path / "models", name="x", options=options)
    # A version that stays must still load under the common configuration
    export_triton([plan("8.6")], tmp_path / "models", name="x")
    larger = ShapeProfile(PROFILE.min, PROFILE.opt, BatchShape(8, 256, 256))
    with pytest.raises(ConfigError, match=r"1/model_sm86.plan takes at most 4"):
        export_triton([plan("8.6", (larger,))], tmp_path / "models", name="x", options=TritonOptions(max_batch=8))
    with pytest.raises(ArtifactError, match=r"has model_sm86.plan in its versions, the new one lacks it"):
        export_triton([plan("9.0")], tmp_path / "models", name="x")
    assert export_triton([plan("8.6"), plan("9.0")], tmp_path / "models", name="x").version == 2


def test_an_openvino_model_is_not_put_into_a_repository(toy_run: Path, toy_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--triton takes the ONNX model or the plan, not --openvino: give"):
        gmtool.export(toy_run, openvino=True, triton=tmp_path / "models")
    TritonTarget(tmp_path / "models", name="it").add([toy_model.with_suffix(".xml"), toy_model])
    assert [path.name for path in (tmp_path / "models/it/1").iterdir()] == ["model.onnx"]


def test_another_model_of_that_name_is_left_alone(
    plan: Callable[..., Path], toy_model: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    export_triton([toy_model], models, name="x")
    before = tree(models)
    with pytest.raises(ArtifactError, match=r"is another model \(onnxruntime: .*\) than this one \(tensorrt: "):
        export_triton([plan("8.6")], models, name="x")
    (models / "theirs" / "1").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="config.pbtxt: not a model configuration"):
        export_triton([toy_model], models, name="theirs")
    (models / "theirs" / "config.pbtxt").write_text("nmae: 'theirs'")
    with pytest.raises(ArtifactError, match="config.pbtxt: not a model configuration"):
        export_triton([toy_model], models, name="theirs")
    with pytest.raises(ConfigError, match="--triton-name a/b"):
        export_triton([toy_model], models, name="a/b")
    assert {name: content for name, content in tree(models).items() if name.startswith("x/")} == before


@pytest.mark.parametrize("writes_that_work", [0, 1, 2])
def test_case_19_a_disk_that_fills_up_leaves_the_old_repository(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes_that_work: int
) -> None:
    models, done = tmp_path / "models", 0
    export_triton([toy_model], models, name="old")
    before = tree(tmp_path)

    def fail(path: Path, content: bytes | str) -> None:
        nonlocal done
        if done == writes_that_work:
            raise OSError("No space left on device")
        done += 1
        write_atomically(path, content)

    monkeypatch.setattr("gmtool_export.triton.repository.write_atomically", fail)
    with pytest.raises(OSError, match="No space left"):
        export_triton([toy_model], models, name="new")
    assert tree(tmp_path) == before
    assert not (models / "new").exists()
    done = 0
    if writes_that_work < 2:  # the next version's model, then the changed configuration
        with pytest.raises(OSError, match="No space left"):
            export_triton([toy_model], models, name="old", options=TritonOptions(instances=3))
        assert tree(tmp_path) == before


def test_what_a_killed_process_left_is_cleared_away(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_triton([toy_model], tmp_path / "models", name="x").folder
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        leftovers = [temporary_path(tmp_path), temporary_path(folder)]
    staging = temporary_path(tmp_path)  # of an export that goes on at the same time
    for made in (*leftovers, staging):
        (made / "1").mkdir(parents=True)
    assert export_triton([toy_model], tmp_path / "models", name="x").version == 2
    export_triton([toy_model], tmp_path / "models", name="y")
    assert list(tmp_path.rglob("*.gmtool-tmp")) == [staging]
