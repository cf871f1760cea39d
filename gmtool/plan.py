"""What lies beside a TensorRT plan, because the plan cannot say it, and whether a plan fits a machine.

The plan file is raw, as trtexec and Triton want it. Its sidecar, `<plan's name>.json`, holds the model's
`ArtifactSpec` and what TensorRT was built for. A plan is executable: it is loaded if its sidecar vouches for it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gmtool.errors import ConfigError
from gmtool.spec import ArtifactSpec, Precision

PLAN_FORMAT_VERSION = 1
PLAN_SUFFIX = ".plan"
MAX_SIDECAR_BYTES = 4 * 2**20

Flavour = Literal["tensorrt", "tensorrt_rtx"]
"""The Python package that builds and runs a plan; neither reads the other's plans."""
FLAVOUR_TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class BatchShape:
    """A batch of images of one size; written as `4x512x1024`."""

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str, *, where: str) -> BatchShape:
        """Read `BxHxW`.

        Args:
            text: What was typed.
            where: The option, for the message.

        Raises:
            ConfigError: Not three whole numbers above zero.
        """
        parts = text.lower().replace("×", "x").split("x")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise ConfigError(f"{where} {text}: expected batch x height x width, for example 1x512x1024")
        return cls(*map(int, parts))

    def covers(self, other: BatchShape) -> bool:
        """Return whether no side of `other` is larger."""
        return other.batch <= self.batch and other.height <= self.height and other.width <= self.width


@dataclass(frozen=True)
class ShapeProfile:
    """An optimisation profile: the shapes that a plan takes, and the one that it is fastest at."""

    min: BatchShape
    opt: BatchShape
    max: BatchShape

    def __post_init__(self) -> None:
        if not (self.max.covers(self.opt) and self.opt.covers(self.min)):
            raise ConfigError(f"shapes {self}: expected min <= opt <= max in batch, height and width")

    def __str__(self) -> str:
        return f"min {self.min}, opt {self.opt}, max {self.max}"

    def misfit(self, shape: BatchShape) -> str | None:
        """Return which sides of `shape` are outside, and of what; None if it is inside."""
        outside = [
            f"{name} {got} is outside {low}..{high}"
            for name, got, low, high in (
                ("batch", shape.batch, self.min.batch, self.max.batch),
                ("height", shape.height, self.min.height, self.max.height),
                ("width", shape.width, self.min.width, self.max.width),
            )
            if not low <= got <= high
        ]
        return ", ".join(outside) or None


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

    flavour: Flavour
    version: str
    """Of the installed package, such as "11.4.0.106"."""
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
        raise NotImplementedError

    def misfits(self, host: Host) -> list[str]:
        """Return every reason why this plan does not run there, in words; empty if it does."""
        raise NotImplementedError


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
    return f"model_{precision}{'.rtx' if flavour == 'tensorrt_rtx' else ''}{PLAN_SUFFIX}"


def sidecar_path(plan: Path) -> Path:
    """Return where the sidecar of a plan lies: `model_fp16.plan.json`."""
    return plan.with_name(plan.name + ".json")


def read_sidecar(plan: Path) -> PlanSpec:
    """Return what lies beside a plan; the plan itself is not looked at (`read_plan` does).

    Raises:
        ArtifactError: There is none, or it is none.
    """
    raise NotImplementedError


def read_plan(path: Path, *, trust: bool = False) -> LoadedPlan:
    """Read a plan and check that it is the one that its sidecar describes. Nothing of it is run.

    Args:
        path: A `.plan` file.
        trust: Take a plan that no sidecar vouches for (`--trust`). What its classes are is then taken from its
            sidecar, which may be of another plan of the same model, or from the ONNX model of the same name.

    Raises:
        ArtifactError: No such file, no sidecar, another plan than the sidecar says.
    """
    raise NotImplementedError


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan and its sidecar, each whole or not at all.

    The sidecar comes first, and holds the plan's hash: after a crash between the two there is a sidecar that
    vouches for no plan, and never a plan with a sidecar that wrongly does.
    """
    raise NotImplementedError
