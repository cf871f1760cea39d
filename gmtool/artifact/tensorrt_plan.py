"""TensorRT plan and its sidecar: hash, model spec, version, GPU and profiles, compared with a machine.

The plan file is raw, as trtexec and Triton need it. Its sidecar `<plan name>.json` holds the rest. Plans are
executable, so a plan is loaded only if its sidecar has its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.artifact.shapes import ShapeProfile
from gmtool.artifact.spec import ArtifactSpec, Precision
from gmtool.errors import ArtifactError
from gmtool.files import open_atomically, write_atomically
from gmtool.json_toml import format_version, parse_json, typed

PLAN_FORMAT_VERSION = 1
PLAN_SUFFIX = ".plan"
RTX_MARK = ".rtx"
"""Part of the file name of TensorRT-RTX plans, before the suffix."""
MAX_SIDECAR_BYTES = 4 * 2**20

Flavour = Literal["tensorrt", "tensorrt_rtx"]
"""Python package that builds and runs a plan; each reads only its own plans."""
FLAVOUR_TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Gpu:
    """GPU: name, compute capability, memory."""

    name: str
    compute_capability: str
    """For example "8.6"."""
    memory_bytes: int


@dataclass(frozen=True)
class Host:
    """Machine that runs a plan: TensorRT version, platform, GPU."""

    version: str
    """Version of the installed TensorRT, such as "11.4.0.106"."""
    platform: str
    """Operating system and processor, from `this_platform`."""
    gpu: Gpu


@dataclass(frozen=True)
class PlanSpec:
    """Sidecar of a plan: model spec, and versions and GPUs that it runs on."""

    artifact: ArtifactSpec
    plan_sha256: str
    """SHA-256 of the plan file."""
    onnx_sha256: str
    """SHA-256 of the ONNX file that it was built from."""
    flavour: Flavour
    version: str
    """Version of TensorRT that built it, such as "11.4.0.106"."""
    gpu: str | None
    """Name of the GPU that it was built on; None if it was built without one."""
    compute_capabilities: tuple[str, ...]
    """Compute capabilities that it runs on; "8.0+" means 8.0 and later."""
    platform: str
    """Operating system and processor that it was built on, such as "linux-x86_64"."""
    hardware_compatible: bool
    """Runs on other GPUs (Ampere and later) too, but slower."""
    version_compatible: bool
    """Runs with later versions of TensorRT too, but is larger."""
    profiles: tuple[ShapeProfile, ...]
    workspace_bytes: int | None
    """Limit of the builder's workspace, in bytes; None: TensorRT's default."""
    created: str
    """Time of the build, ISO 8601, UTC."""
    format_version: int = PLAN_FORMAT_VERSION

    def to_json(self) -> str:
        """Return the sidecar's text."""
        value = asdict(self) | {"artifact": json.loads(self.artifact.to_json())}
        return json.dumps(value, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> PlanSpec:
        """Parse a sidecar.

        Raises:
            ArtifactError: Not a sidecar, or written by a newer gmtool.
        """
        what = "the sidecar of a plan"
        value = parse_json(text, where=f"{where} is damaged", error=ArtifactError, what=what)
        format_version(value, newest=PLAN_FORMAT_VERSION, where=where, what=what, error=ArtifactError)
        artifact = ArtifactSpec.from_json(json.dumps(value.get("artifact")), where=where)
        return typed(cls, value | {"artifact": artifact}, where=f"{where} is damaged", error=ArtifactError)

    def misfits(self, host: Host) -> list[str]:
        """Return all reasons why this plan does not run on a machine; empty if it does."""
        title = FLAVOUR_TITLES[self.flavour]
        reasons = []
        if not self._takes_version(host.version):
            later = " or later" if self.version_compatible else ""
            reasons.append(f"it needs {title} {self.version}{later}, and {host.version} is installed")
        capability = host.gpu.compute_capability
        if not any(_takes_capability(wanted, capability) for wanted in self.compute_capabilities):
            reasons.append(
                f"it is for GPUs of compute capability {', '.join(self.compute_capabilities)}, and "
                f"{host.gpu.name} has {capability}"
            )
        # Plans of TensorRT-RTX run on Linux and Windows alike
        if self.flavour == "tensorrt" and self.platform != host.platform:
            reasons.append(f"it is for {self.platform}, and this is {host.platform}")
        return reasons

    def _takes_version(self, installed: str) -> bool:
        """Compare major, minor and patch version."""
        built, here = release(self.version)[:3], release(installed)[:3]
        return here >= built if self.version_compatible else here == built


@dataclass(frozen=True)
class Plan:
    """Built plan with its sidecar."""

    content: bytes
    spec: PlanSpec


@dataclass(frozen=True)
class LoadedPlan:
    """Plan read from a file, with its spec."""

    content: bytes
    sha256: str
    artifact: ArtifactSpec
    spec: PlanSpec | None
    """Sidecar of the plan; None if opened with trust, without a matching sidecar."""


def plan_name(precision: Precision, flavour: Flavour) -> str:
    """Return the file name of a plan: `model_fp16.plan`, or `model_fp16.rtx.plan` of TensorRT-RTX."""
    return f"model_{precision}{RTX_MARK if flavour == 'tensorrt_rtx' else ''}{PLAN_SUFFIX}"


def flavour_of_name(plan: Path) -> Flavour:
    """Return the TensorRT flavour of a plan by its file name."""
    return "tensorrt_rtx" if plan.name.endswith(RTX_MARK + PLAN_SUFFIX) else "tensorrt"


def sidecar_path(plan: Path) -> Path:
    """Return the path of a plan's sidecar: `model_fp16.plan.json`."""
    return plan.with_name(plan.name + ".json")


def read_sidecar(plan: Path) -> PlanSpec:
    """Return the sidecar of a plan without reading the plan (see `read_plan`).

    Raises:
        ArtifactError: Sidecar missing or invalid.
    """
    path = sidecar_path(plan)
    if not path.is_file():
        raise ArtifactError(
            f"{plan} has no sidecar {path.name}, and plans are executable: export it again with gmtool export "
            "--trt, or give --trust if you built it yourself"
        )
    if path.stat().st_size > MAX_SIDECAR_BYTES:
        raise ArtifactError(f"{path} is larger than {MAX_SIDECAR_BYTES >> 20} MiB: not the sidecar of a plan")
    return PlanSpec.from_json(path.read_bytes().decode("utf-8", "replace"), where=str(path))


def read_plan(path: Path, *, trust: bool = False) -> LoadedPlan:
    """Read a plan and check it against the hash in its sidecar; the plan is not executed.

    Args:
        path: Path of the `.plan` file.
        trust: Accept a plan without matching sidecar (`--trust`). Its model spec then comes from its sidecar,
            which may describe another plan of the same model, or from the ONNX model of the same name.

    Raises:
        ArtifactError: Plan or sidecar missing, or the hashes differ.
    """
    if not path.is_file():
        raise ArtifactError(f"plan {path}: no such file; expected a model_*{PLAN_SUFFIX} of gmtool export --trt")
    if trust and not sidecar_path(path).exists():
        artifact, spec = _spec_of_onnx_beside(path), None
    else:
        spec = read_sidecar(path)
        artifact = spec.artifact
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if spec is not None and spec.plan_sha256 != sha256:
        if not trust:
            raise ArtifactError(
                f"{path} is not the plan that {sidecar_path(path).name} describes: sha256 {sha256[:12]}..., "
                f"expected {spec.plan_sha256[:12]}...: export it again, or give --trust if you built it yourself"
            )
        spec = None  # describes another plan
    return LoadedPlan(content, sha256, artifact, spec)


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan and its sidecar atomically.

    When the plan is on the disk, the sidecar is renamed first: after a crash between the two there may be a
    sidecar without plan, but never a plan without sidecar.
    """
    with open_atomically(path) as file:
        file.write(plan.content)
        file.flush()
        os.fsync(file.fileno())  # a full disk fails here, before a file is replaced
        write_atomically(sidecar_path(path), plan.spec.to_json())


def _spec_of_onnx_beside(plan: Path) -> ArtifactSpec:
    """Return the spec of the ONNX model with the name of a plan."""
    name = plan.name.removesuffix(PLAN_SUFFIX).removesuffix(RTX_MARK)
    onnx = plan.with_name(name + ".onnx")
    if not onnx.is_file():
        raise ArtifactError(
            f"{plan}: its classes are unknown: put the ONNX model that it was built from into its folder, as "
            f"{onnx.name}"
        )
    return read_sealed_spec(onnx.read_bytes(), where=onnx)


def _takes_capability(wanted: str, capability: str) -> bool:
    if wanted.endswith("+"):
        return release(capability) >= release(wanted)
    return release(capability) == release(wanted)


def release(version: str) -> list[int]:
    """Return the numbers of a version or a compute capability, "11.4.0.106" or "8.0+", to compare."""
    return [int(number) for number in re.findall(r"\d+", version)]
