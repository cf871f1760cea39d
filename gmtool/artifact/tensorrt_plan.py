"""What lies beside a TensorRT plan, because the plan cannot say it, and whether a plan fits a machine.

The plan file is raw, as trtexec and Triton want it. Its sidecar, `<plan's name>.json`, holds the model's
`ArtifactSpec` and what TensorRT was built for. A plan is executable: it is loaded if its sidecar vouches for it.
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
"""Stands before the suffix of a plan of TensorRT-RTX."""
MAX_SIDECAR_BYTES = 4 * 2**20

Flavour = Literal["tensorrt", "tensorrt_rtx"]
"""The Python package that builds and runs a plan; neither reads the other's plans."""
FLAVOUR_TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Gpu:
    """A graphics card."""

    name: str
    compute_capability: str
    """Such as "8.6"."""
    memory_bytes: int


@dataclass(frozen=True)
class Host:
    """What a plan is about to run on."""

    version: str
    """Of the installed TensorRT of the plan's flavour, such as "11.4.0.106"."""
    platform: str
    """As `this_platform` gives it."""
    gpu: Gpu


@dataclass(frozen=True)
class PlanSpec:
    """The sidecar: what model a plan is, and where it runs."""

    artifact: ArtifactSpec
    plan_sha256: str
    """Hash of the plan file."""
    onnx_sha256: str
    """Hash of the ONNX file that it was built from."""
    flavour: Flavour
    version: str
    """Of the TensorRT that built it, such as "11.4.0.106"."""
    gpu: str | None
    """Name of the GPU that it was built on; None if it was built without one."""
    compute_capabilities: tuple[str, ...]
    """Of the GPUs that it runs on; "8.0+" stands for 8.0 and every later one."""
    platform: str
    """Operating system and processor that it was built on, such as "linux-x86_64"."""
    hardware_compatible: bool
    """Built for other GPUs (Ampere and later) too, at a price in speed."""
    version_compatible: bool
    """Built for later versions of TensorRT too, at a price in size."""
    profiles: tuple[ShapeProfile, ...]
    workspace_bytes: int | None
    """Limit of the builder's scratch memory; None for its default."""
    created: str
    """When it was built, ISO 8601, UTC."""
    format_version: int = PLAN_FORMAT_VERSION

    def to_json(self) -> str:
        """Return the sidecar's text."""
        value = asdict(self) | {"artifact": json.loads(self.artifact.to_json())}
        return json.dumps(value, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> PlanSpec:
        """Read a sidecar.

        Raises:
            ArtifactError: Not a sidecar, or written by a newer gmtool.
        """
        what = "the sidecar of a plan"
        value = parse_json(text, where=f"{where} is damaged", error=ArtifactError, what=what)
        format_version(value, newest=PLAN_FORMAT_VERSION, where=where, what=what, error=ArtifactError)
        artifact = ArtifactSpec.from_json(json.dumps(value.get("artifact")), where=where)
        return typed(cls, value | {"artifact": artifact}, where=f"{where} is damaged", error=ArtifactError)

    def misfits(self, host: Host) -> list[str]:
        """Return every reason why this plan does not run there, in words; empty if it does."""
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
        """Compare what makes a release: major, minor and patch."""
        built, here = release(self.version)[:3], release(installed)[:3]
        return here >= built if self.version_compatible else here == built


@dataclass(frozen=True)
class Plan:
    """A plan in memory, with its sidecar: as it was built."""

    content: bytes
    spec: PlanSpec


@dataclass(frozen=True)
class LoadedPlan:
    """A plan that was read, with what is known of it."""

    content: bytes
    sha256: str
    artifact: ArtifactSpec
    spec: PlanSpec | None
    """What it was built for; None for a plan that nothing but the user's trust vouches for."""


def plan_name(precision: Precision, flavour: Flavour) -> str:
    """Return the file name of a plan: `model_fp16.plan`, or `model_fp16.rtx.plan` of TensorRT-RTX."""
    return f"model_{precision}{RTX_MARK if flavour == 'tensorrt_rtx' else ''}{PLAN_SUFFIX}"


def flavour_of_name(plan: Path) -> Flavour:
    """Return which TensorRT a plan is for that has nothing but its name to tell."""
    return "tensorrt_rtx" if plan.name.endswith(RTX_MARK + PLAN_SUFFIX) else "tensorrt"


def sidecar_path(plan: Path) -> Path:
    """Return where the sidecar of a plan lies: `model_fp16.plan.json`."""
    return plan.with_name(plan.name + ".json")


def read_sidecar(plan: Path) -> PlanSpec:
    """Return what lies beside a plan; the plan itself is not looked at (`read_plan` does).

    Raises:
        ArtifactError: There is none, or it is none.
    """
    path = sidecar_path(plan)
    if not path.is_file():
        raise ArtifactError(
            f"{plan} has no sidecar {path.name}, and plans are executable: export it again with gmtool export "
            "--trt, or give --trust if you built it yourself"
        )
    if path.stat().st_size > MAX_SIDECAR_BYTES:
        raise ArtifactError(
            f"{path} is larger than {MAX_SIDECAR_BYTES >> 20} MiB: it is not the sidecar of a plan"
        )
    return PlanSpec.from_json(path.read_bytes().decode("utf-8", "replace"), where=str(path))


def read_plan(path: Path, *, trust: bool = False) -> LoadedPlan:
    """Read a plan and check that it is the one that its sidecar describes. Nothing of it is run.

    Args:
        path: A `.plan` file.
        trust: Take a plan that no sidecar vouches for (`--trust`). What its classes are is then taken from its
            sidecar, which may be of another plan of the same model, or from the ONNX model of the same name.

    Raises:
        ArtifactError: No such file, no sidecar, another plan than the sidecar says.
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
        spec = None  # what it says of its own plan does not hold for this one
    return LoadedPlan(content, sha256, artifact, spec)


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan and its sidecar, each whole or not at all.

    The sidecar takes its name first, once the plan is on the disk, and holds the plan's hash: after a crash
    between the two there is a sidecar that vouches for no plan, and never a plan without one.
    """
    with open_atomically(path) as file:
        file.write(plan.content)
        file.flush()
        os.fsync(file.fileno())  # a full disk shows before anything is replaced
        write_atomically(sidecar_path(path), plan.spec.to_json())


def _spec_of_onnx_beside(plan: Path) -> ArtifactSpec:
    """Return the spec of the ONNX model that a plan has its name from."""
    name = plan.name.removesuffix(PLAN_SUFFIX).removesuffix(RTX_MARK)
    onnx = plan.with_name(name + ".onnx")
    if not onnx.is_file():
        raise ArtifactError(
            f"{plan}: nothing says what its classes are: put the ONNX model that it was built from beside it, as "
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
