import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmtool.artifact.sealed_onnx import SHA256_KEY, SPEC_KEY, UNSEALED, seal
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.artifact.spec import ArtifactSpec, ModelProvenance
from gmtool.artifact.tensorrt_plan import (
    Gpu,
    Host,
    Plan,
    PlanSpec,
    flavour_of_name,
    plan_name,
    read_plan,
    read_sidecar,
    sidecar_path,
    write_plan,
)
from gmtool.classes import ClassSet
from gmtool.errors import ArtifactError, ConfigError

CONTENT = bytes(range(256)) * 40
SPEC = ArtifactSpec(
    classes=ClassSet(names=("sky", "road", "car"), palette=((0, 0, 0), (1, 2, 3), (4, 5, 6)), raw_ids=(0, 1, 2)),
    precision="fp16",
    encoder="resnet18",
    output_stride=8,
    attention_stride=8,
    outputs=("mask", "confidence"),
    provenance=ModelProvenance("toy", 40, 0.5, "ab" * 32, "0.1.0", "2.15.0", "2026-01-01T00:00:00+00:00"),
)
PROFILE = ShapeProfile(BatchShape(1, 32, 32), BatchShape(1, 512, 512), BatchShape(4, 1024, 2048))


def plan_of(content: bytes = CONTENT, **changes: Any) -> Plan:
    spec = PlanSpec(
        artifact=SPEC,
        plan_sha256=hashlib.sha256(content).hexdigest(),
        onnx_sha256="cd" * 32,
        flavour="tensorrt",
        version="11.4.0.106",
        gpu="NVIDIA A10",
        compute_capabilities=("8.6",),
        platform="linux-x86_64",
        hardware_compatible=False,
        version_compatible=False,
        profiles=(PROFILE,),
        workspace_bytes=1 << 30,
        created="2026-01-01T00:00:00+00:00",
    )
    return Plan(content, dataclasses.replace(spec, **changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A plan with its sidecar."""
    path = tmp_path / "model_fp16.plan"
    write_plan(plan_of(), path)
    return path


def test_a_plan_is_raw_and_its_sidecar_gives_everything_back(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert sorted(item.name for item in path.parent.iterdir()) == ["model_fp16.plan", "model_fp16.plan.json"]
    loaded = read_plan(path)
    assert (loaded.content, loaded.spec, loaded.artifact) == (CONTENT, plan_of().spec, SPEC)
    assert loaded.sha256 == plan_of().spec.plan_sha256
    assert read_sidecar(path).profiles == (PROFILE,)


def test_a_name_tells_precision_and_flavour() -> None:
    assert plan_name("fp16", "tensorrt") == "model_fp16.plan"
    assert plan_name("int8", "tensorrt_rtx") == "model_int8.rtx.plan"
    assert flavour_of_name(Path("x/model_int8.rtx.plan")) == "tensorrt_rtx"
    assert flavour_of_name(Path("x.rtx/model_int8.plan")) == "tensorrt"


def test_case_37_a_bare_plan_is_refused_with_a_remedy(path: Path) -> None:
    sidecar_path(path).unlink()
    with pytest.raises(ArtifactError, match=r"has no sidecar model_fp16.plan.json.*export --trt, or give --trust"):
        read_plan(path)


@pytest.mark.parametrize("change", ["start", "middle", "end", "truncated", "empty", "html", "another plan"])
def test_case_37_another_plan_than_the_sidecar_says_is_refused(path: Path, change: str) -> None:
    position = {"start": 0, "middle": len(CONTENT) // 2, "end": -1}.get(change)
    content = bytearray(CONTENT)
    if position is not None:
        content[position] ^= 1
    others = {"truncated": CONTENT[:-1], "empty": b"", "html": b"<html>", "another plan": b"\0" * 64}
    path.write_bytes(others.get(change, content))
    with pytest.raises(
        ArtifactError, match=r"is not the plan that model_fp16.plan.json describes: sha256 .*\.\.\."
    ):
        read_plan(path)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"plan .*model_fp16.plan: no such file; expected a model_\*.plan"):
        read_plan(tmp_path / "model_fp16.plan")


def test_trust_takes_the_classes_of_the_sidecar_and_nothing_that_it_says_of_its_own_plan(path: Path) -> None:
    path.write_bytes(b"built by trtexec")
    loaded = read_plan(path, trust=True)
    assert (loaded.content, loaded.artifact, loaded.spec) == (b"built by trtexec", SPEC, None)


def test_trust_in_the_plan_itself_changes_nothing(path: Path) -> None:
    assert read_plan(path, trust=True) == read_plan(path)


@pytest.mark.parametrize("name", ["model_fp16.plan", "model_fp16.rtx.plan"])
def test_trust_without_a_sidecar_takes_the_classes_of_the_onnx_model_of_that_name(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENT)
    with pytest.raises(ArtifactError, match=r"put the ONNX model .* into its folder, as model_fp16.onnx"):
        read_plan(path, trust=True)
    (tmp_path / "model_fp16.onnx").write_bytes(_sealed_onnx(SPEC))
    loaded = read_plan(path, trust=True)
    assert (loaded.artifact, loaded.spec) == (SPEC, None)
    (tmp_path / "model_fp16.onnx").write_bytes(b"<html>")
    with pytest.raises(ArtifactError, match="is not a model that gmtool export wrote"):
        read_plan(path, trust=True)


def _sealed_onnx(spec: ArtifactSpec) -> bytes:
    from onnx import ModelProto, helper

    model = ModelProto()
    helper.set_model_props(model, {SPEC_KEY: spec.to_json(), SHA256_KEY: UNSEALED})
    return seal(model.SerializeToString())


def _with(**changes: object) -> Callable[[dict[str, object]], object]:
    return lambda value: value | changes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda value: [], "not the sidecar of a plan"),
        (lambda value: {"file": "model_fp32.onnx"}, "not the sidecar of a plan"),
        (_with(format_version=2), "has format 2; this gmtool reads up to 1: update it"),
        (_with(version=11), "version is 11; expected text"),
        (_with(flavour="openvino"), "flavour is 'openvino'; expected tensorrt or tensorrt_rtx"),
        (_with(compute_capabilities=8.6), "compute_capabilities is 8.6; expected a list"),
        (_with(profiles=[{"min": None}]), r"profiles\[0\].opt is missing"),
        (_with(hardware_compatible=1), "hardware_compatible is 1; expected true or false"),
        (_with(workspace_bytes=True), "workspace_bytes is true; expected a whole number"),
        (_with(profiles=[dataclasses.asdict(PROFILE) | {"max": dataclasses.asdict(PROFILE.min)}]), "min <= opt"),
        (_with(artifact={"format_version": 1}), "its description is damaged"),
    ],
)  # fmt: skip
def test_a_damaged_sidecar_is_refused(
    path: Path, damage: Callable[[dict[str, object]], object], message: str
) -> None:
    sidecar = sidecar_path(path)
    sidecar.write_text(json.dumps(damage(json.loads(sidecar.read_text()))))
    with pytest.raises(ArtifactError, match=message):
        read_plan(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"<html>", b"[" * 100_000, b" " * (5 << 20)])
def test_a_file_that_is_no_sidecar_is_refused(path: Path, content: bytes) -> None:
    sidecar_path(path).write_bytes(content)
    with pytest.raises(ArtifactError, match="not the sidecar of a plan|nested deeper"):
        read_plan(path)


def host(version: str = "11.4.0.106", platform: str = "linux-x86_64", gpu: str = "8.6") -> Host:
    return Host(version, platform, Gpu("a GPU", gpu, 24 << 30))


LATER = {"version_compatible": True}
AMPERE_ON = {"compute_capabilities": ("8.0+",)}


@pytest.mark.parametrize(
    ("changes", "where", "reason"),
    [
        ({}, host(), None),
        ({}, host("11.4.0.200"), None),
        ({}, host("11.5.0.1"), "needs TensorRT 11.4.0.106, and 11.5.0.1 is installed"),
        (LATER, host("11.10.0.1"), None),
        (LATER, host("11.3.9.9"), "needs TensorRT 11.4.0.106 or later, and 11.3.9.9"),
        ({}, host(platform="windows-amd64"), "it is for linux-x86_64, and this is windows-amd64"),
        ({}, host(gpu="9.0"), "compute capability 8.6, and a GPU has 9.0"),
        (AMPERE_ON, host(gpu="9.0"), None),
        (AMPERE_ON, host(gpu="10.3"), None),
        (AMPERE_ON, host(gpu="7.5"), "compute capability 8.0+, and a GPU has 7.5"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], where: Host, reason: str | None) -> None:
    reasons = plan_of(**changes).spec.misfits(where)
    assert len(reasons) == (reason is not None)
    assert reason is None or reason in reasons[0]


def test_all_that_does_not_fit_is_said_at_once() -> None:
    reasons = plan_of().spec.misfits(host("10.13.3.9", "windows-amd64", "12.0"))
    assert [reason.split()[1] for reason in reasons] == ["needs", "is", "is"]


@pytest.mark.parametrize(("capability", "fits"), [("7.5", False), ("8.9", True), ("9.0", False), ("12.2", True)])
def test_a_plan_of_rtx_runs_on_both_systems_and_not_on_data_centre_gpus(capability: str, fits: bool) -> None:
    spec = plan_of(
        flavour="tensorrt_rtx", version="1.7.1.116", compute_capabilities=("8.0", "8.6", "8.9", "12.0", "12.1+")
    ).spec
    reasons = spec.misfits(host("1.7.1.116", "windows-amd64", capability))
    assert (reasons == []) is fits
    assert "needs TensorRT-RTX 1.7.1.116" in spec.misfits(host("1.8.0.1"))[0]


def test_a_shape_is_read_as_it_is_typed() -> None:
    assert BatchShape.parse("4x512X1024", where="--max-shape") == BatchShape(4, 512, 1024)
    for text in ("512x1024", "1x0x5", "1x2x3x4", "ax2x3", "-1x2x3", "1x²x3", ""):
        with pytest.raises(
            ConfigError, match="--max-shape .*expected batch x height x width, for example 1x512x1024"
        ):
            BatchShape.parse(text, where="--max-shape")


def test_a_profile_is_ordered() -> None:
    with pytest.raises(ConfigError, match="min 1x32x32, opt 1x512x512, max 4x256x512: expected min <= opt <= max"):
        ShapeProfile(BatchShape(1, 32, 32), BatchShape(1, 512, 512), BatchShape(4, 256, 512))


CRASHING_WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from gmtool.errors import ArtifactError
from gmtool.files import sweep_leftovers
from gmtool.artifact.tensorrt_plan import read_plan, write_plan
from test_plan import plan_of

def crash_at(number, path):
    done = 0
    def counted(function):
        def wrapper(*arguments, **keywords):
            nonlocal done
            done += 1
            if done == number:
                os._exit(9)
            return function(*arguments, **keywords)
        return wrapper
    os.fsync, os.open, os.close = counted(os.fsync), counted(os.open), counted(os.close)
    Path.open, Path.replace = counted(Path.open), counted(Path.replace)
    write_plan(plan_of(b"new"), path)
    os._exit(0)

for old in (None, b"old"):
    for number in range(1, 40):
        folder = Path(sys.argv[1]) / f"{old}-{number}"
        folder.mkdir()
        path = folder / "model_fp16.plan"
        if old is not None:
            write_plan(plan_of(old), path)
        child = os.fork()
        if child == 0:
            crash_at(number, path)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            found = read_plan(path).content
        except ArtifactError as error:
            known = {"is not the plan that": "refused", "no such file": "missing", "has no sidecar": "bare"}
            (found,) = [name for part, name in known.items() if part in str(error)]
        sweep_leftovers(folder)
        left = sorted(item.name.removeprefix("model_fp16") for item in folder.iterdir())
        print(old, number, code, found, *left)
        if code == 0:
            break
"""


def test_case_19_a_crash_never_leaves_a_plan_that_is_wrongly_vouched_for(tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(CRASHING_WRITER)
    arguments = [sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)]
    lines = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()
    for old, without in (("None", "missing"), ("b'old'", "b'old'")):
        rows = [line.split() for line in lines if line.startswith(f"{old} ")]
        found = [row[3] for row in rows]
        # As it was, then (between the two names) refused, then new: in this order, with no bare plan in between
        assert set(found) <= {without, "refused", "b'new'"}
        assert found == sorted(found, key=[without, "refused", "b'new'"].index)
        assert found[0] == without and found[-1] == "b'new'" and rows[-1][2] == "0"
        assert len(rows) > 10
        assert all(".plan" not in row[4:] or ".plan.json" in row[4:] for row in rows)


def test_a_full_disk_leaves_the_old_plan_and_its_sidecar(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = read_plan(path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_plan(plan_of(b"new"), path)
    assert read_plan(path) == before
    assert len(list(path.parent.iterdir())) == 2
