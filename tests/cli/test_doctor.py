"""What `gmtool doctor` makes of a machine: this one, and those that it is not."""

import compileall
import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import Cli

from gmtool.doctor import facts as collecting
from gmtool.doctor import probes
from gmtool.doctor.diagnosis import GIB, Extra, Facts, Finding, diagnose
from gmtool.doctor.facts import find_uncompiled, read_extras
from gmtool.doctor.probes import TINY_ONNX, Probe, run_probe
from gmtool.resources import Resources

CUDA = "CUDAExecutionProvider"
GPU = {"name": "NVIDIA A10", "compute_capability": "8.6", "memory_bytes": 24 * GIB}
WELL = Facts(
    extras={"serve": Extra((), (), empty=False)},
    torch=Probe(
        {"version": "2.15", "cuda": "13.2", "mps": False, "devices": 1, "bf16": True, "error": None}, None
    ),
    driver=Probe({"there": True, "status": 0, "cuda": "13.2", "gpus": [GPU], "release": "580.65"}, None),
    onnxruntime=Probe({"version": "1.31.1", "cuda": "13.0", "providers": [CUDA]}, None),
    onnxruntime_packages=("onnxruntime-gpu",),
    providers={CUDA: Probe({"got": CUDA, "stderr": ""}, None)},
    tensorrt={
        "tensorrt": Probe({"version": "11.4", "builds": True, "compute_capabilities": [], "error": None}, None)
    },
    cuda_bindings="13.0.3",
    resources=Resources(
        memory_bytes=64 * GIB,
        available_bytes=60 * GIB,
        container_bytes=None,
        cores=16,
        container_cores=None,
        shared_bytes=8 * GIB,
        shared_free_bytes=8 * GIB,
        disk_free_bytes=100 * GIB,
        folder=Path("/home"),
        writable=True,
        open_files=4096,
    ),
)


def changed(probe: Probe | None, **value: Any) -> Probe:
    assert probe is not None
    return Probe({**probe.value, **value}, None)


def by_part(facts: Facts) -> dict[str, Finding]:
    return {finding.part: finding for finding in diagnose(facts)}


NO_GPU = replace(WELL, driver=Probe({"there": False}, None), torch=changed(WELL.torch, devices=0))
OLD_DRIVER = changed(WELL.driver, cuda="12.4")
FAILED_CUDA = {CUDA: Probe({"got": "CPUExecutionProvider", "stderr": "libcurand.so.10: cannot open"}, None)}
SICK: dict[str, tuple[Facts, str, str, str, str]] = {
    "extra absent": (
        replace(WELL, extras={"trt": Extra(("tensorrt",), (), empty=False)}),
        "extra trt",
        "absent",
        "not installed: tensorrt",
        'pip install --upgrade "gmtool[trt]"',
    ),
    "extra too old": (
        replace(WELL, extras={"train": Extra((), ("torch 2.1, expected >=2.10",), empty=False)}),
        "extra train",
        "problem",
        "too old: torch 2.1",
        "--upgrade",
    ),
    "no GPU": (NO_GPU, "onnxruntime CUDA", "ok", "loads", ""),
    "no GPU and no CUDA": (
        replace(NO_GPU, providers=FAILED_CUDA),
        "onnxruntime CUDA",
        "absent",
        "there is no GPU",
        "",
    ),
    "container without its GPU": (
        replace(WELL, driver=Probe({"there": True, "status": 100, "cuda": "13.2", "gpus": []}, None)),
        "NVIDIA driver",
        "absent",
        "but no GPU",
        "--gpus all",
    ),
    "driver was updated": (
        replace(WELL, driver=Probe({"there": True, "status": 803, "cuda": "13.2", "gpus": []}, None)),
        "NVIDIA driver",
        "problem",
        "another version than its kernel module",
        "restart the machine",
    ),
    "driver hangs": (
        replace(WELL, driver=Probe({}, "it did not answer within 60 s")),
        "NVIDIA driver",
        "problem",
        "did not answer",
        "restart",
    ),
    "old driver, torch": (
        replace(WELL, driver=OLD_DRIVER, torch=changed(WELL.torch, devices=0)),
        "torch",
        "problem",
        "built for CUDA 13.2, and the driver knows CUDA up to 12.4",
        "update the driver",
    ),
    "old driver, onnxruntime": (
        replace(WELL, driver=OLD_DRIVER, providers=FAILED_CUDA),
        "onnxruntime CUDA",
        "problem",
        "built for CUDA 13.0, and the driver knows CUDA up to 12.4",
        "update the driver",
    ),
    "old driver, cuda-bindings": (
        replace(WELL, driver=OLD_DRIVER),
        "cuda-bindings",
        "problem",
        "the driver knows CUDA up to 12.4",
        'pip install "cuda-bindings==12.*"',
    ),
    "torch for the processor": (
        replace(WELL, torch=changed(WELL.torch, cuda=None, devices=0)),
        "torch",
        "warning",
        "the GPU is not used",
        "pytorch.org",
    ),
    "torch without code for the GPU": (
        replace(WELL, torch=changed(WELL.torch, error="no kernel image is available")),
        "torch",
        "problem",
        "no kernel image",
        "pytorch.org",
    ),
    "torch broken": (
        replace(WELL, torch=Probe({}, "ImportError: libcudnn.so.9")),
        "torch",
        "problem",
        "libcudnn.so.9",
        "--force-reinstall",
    ),
    "CUDA libraries missing": (
        replace(WELL, providers=FAILED_CUDA),
        "onnxruntime CUDA",
        "problem",
        "libcurand.so.10",
        'pip install "gmtool[cuda]"',
    ),
    "TensorRT of ONNX Runtime": (
        replace(WELL, providers={"TensorrtExecutionProvider": FAILED_CUDA[CUDA]}),
        "onnxruntime Tensorrt",
        "absent",
        "wants TensorRT 10 (libnvinfer.so.10), and TensorRT 11.4 is installed",
        "",
    ),
    "provider crashes": (
        replace(WELL, providers={"CPUExecutionProvider": Probe({}, "it crashed (signal 4)")}),
        "onnxruntime CPU",
        "problem",
        "signal 4",
        "--force-reinstall",
    ),
    "TensorRT is a stub": (
        replace(WELL, tensorrt={"tensorrt": changed(None or WELL.driver, error="tensorrt is a placeholder")}),
        "TensorRT",
        "problem",
        "placeholder",
        "",
    ),
    "TensorRT-RTX and a data centre GPU": (
        replace(
            WELL,
            tensorrt={
                "tensorrt_rtx": Probe(
                    {"version": "1.7", "builds": True, "compute_capabilities": ["8.9"], "error": None}, None
                )
            },
        ),
        "TensorRT-RTX",
        "warning",
        "for no GPU of compute capability 8.6",
        "",
    ),
    "small container": (
        replace(WELL, resources=replace(WELL.resources, container_bytes=2 * GIB)),
        "memory",
        "warning",
        "the container is stopped at 2.0",
        "smaller batches",
    ),
    "container with little time": (
        replace(WELL, resources=replace(WELL.resources, container_cores=1.5)),
        "processor",
        "warning",
        "the container has the time of 1.5",
        "1 are used by default",
    ),
    "container with little shared memory": (
        replace(WELL, resources=replace(WELL.resources, shared_bytes=64 * 2**20)),
        "/dev/shm",
        "warning",
        "0.06 GiB",
        "--shm-size",
    ),
    "full disk": (
        replace(WELL, resources=replace(WELL.resources, disk_free_bytes=GIB)),
        "disk",
        "warning",
        "1.0 GiB free",
        "--out",
    ),
    "read-only folder": (
        replace(WELL, resources=replace(WELL.resources, writable=False)),
        "disk",
        "warning",
        "cannot be written to",
        "--out",
    ),
    "few open files": (
        replace(WELL, resources=replace(WELL.resources, open_files=256)),
        "open files",
        "warning",
        "at most 256",
        "ulimit -n",
    ),
    "no bytecode": (
        replace(WELL, uncompiled="PYTHONDONTWRITEBYTECODE is set"),
        "bytecode",
        "warning",
        "not kept: PYTHONDONTWRITEBYTECODE is set",
        "-m compileall -q /",
    ),
}


@pytest.mark.parametrize("sickness", SICK)
def test_what_is_wrong_is_named_with_its_remedy(sickness: str) -> None:
    facts, part, state, text, remedy = SICK[sickness]
    finding = by_part(facts)[part]
    assert finding.state == state
    assert text in finding.text
    assert remedy in (finding.remedy or "")


def test_two_packages_of_onnxruntime_are_a_problem() -> None:
    facts = replace(WELL, onnxruntime_packages=("onnxruntime", "onnxruntime-gpu"))
    problems = [finding for finding in diagnose(facts) if finding.state == "problem"]
    assert [finding.part for finding in problems] == ["onnxruntime"]
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in (problems[0].remedy or "")


def test_a_machine_that_is_well_has_nothing_to_complain_of() -> None:
    assert {finding.state for finding in diagnose(WELL)} == {"ok"}
    assert by_part(WELL)["GPU 0"].text == "NVIDIA A10, compute capability 8.6, 24 GiB"


def test_this_machine(cli: Cli) -> None:
    code, out, err = cli(["doctor", "--json"])
    value = json.loads(out)
    findings = {finding["part"]: finding for finding in value["findings"]}
    assert code == int(any(finding["state"] == "problem" for finding in findings.values())), err
    assert findings["onnxruntime CPU"] == {
        "part": "onnxruntime CPU",
        "state": "ok",
        "text": "loads and computes",
        "remedy": None,
    }
    for part in ("extra train", "extra serve", "torch", "TensorRT-RTX"):
        assert findings[part]["state"] == "ok"


def test_problems_end_with_1_and_absence_with_0(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for found_facts, expected in ((replace(NO_GPU, torch=None), 0), (SICK["torch broken"][0], 1)):
        monkeypatch.setattr(collecting, "collect_facts", lambda found=found_facts: found)
        code, out, err = cli(["doctor"])
        assert code == expected, err
        assert out.rstrip().endswith(f"{expected} problem{'s' * (expected != 1)}, 0 warnings")


def test_a_probe_that_crashes_or_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "KeyError" in (run_probe("nonsense").failure or "")
    monkeypatch.setattr(probes, "TIMEOUT_S", 0.01)
    assert run_probe("driver").failure == "it did not answer within 0.01 s"


def test_the_tiny_model_is_a_model() -> None:
    model = onnx.ModelProto.FromString(TINY_ONNX)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv", "MatMul"]


def test_packages_that_the_extras_of_a_requirement_need_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of `onnxruntime-gpu[cuda,cudnn]`: cuRAND is one of them."""
    version, requires = metadata.version, metadata.requires

    def only_the_package(name: str) -> str:
        if name.startswith("nvidia-curand"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(
        metadata,
        "requires",
        lambda name: (
            ["onnxruntime-gpu[cuda]; extra == 'cuda'"]
            if name == "gmtool"
            else ["nvidia-curand; extra == 'cuda'", "other; extra == 'x'"]
            if name == "onnxruntime-gpu"
            else requires(name)
        ),
    )
    monkeypatch.setattr(metadata, "version", only_the_package)
    assert read_extras()["cuda"].missing == ("nvidia-curand",)


def test_a_package_that_each_process_compiles_anew_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "slow_package").mkdir()
    (tmp_path / "slow_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert find_uncompiled(["absent_package", "slow_package"]) is None, "it will be kept"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert find_uncompiled(["absent_package", "slow_package"]) == "PYTHONDONTWRITEBYTECODE is set"
    compileall.compile_dir(tmp_path, quiet=1)
    assert find_uncompiled(["absent_package", "slow_package"]) is None
