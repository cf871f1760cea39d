"""From an ONNX model to a TensorRT plan: one code path over TensorRT and TensorRT-RTX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gmtool.plan import Flavour, Plan, ShapeProfile
from gmtool.spec import ArtifactSpec


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is built. Precision is not among them: it is that of the ONNX graph (strongly typed)."""

    flavour: Flavour
    """`choose_flavour` tells which is installed."""
    profiles: tuple[ShapeProfile, ...]
    """Shapes that the plan takes; at least one."""
    workspace_bytes: int | None = None
    """Limit of the builder's scratch memory; None for its default."""
    hardware_compatible: bool = False
    """Also for other GPUs, Ampere and later; TensorRT only."""
    version_compatible: bool = False
    """Also for later versions of TensorRT; TensorRT only."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs to build for, such as ("8.6", "12.0"); TensorRT-RTX only, which needs no GPU to build."""
    timing_cache: Path | None = None
    """Kernel timings, read before and written after: a second build is faster; TensorRT only."""
    verbose: bool = False
    """Pass the builder's own log on, to stderr."""


def choose_flavour(asked: Flavour | None = None) -> Flavour:
    """Return the flavour to build with: the one asked for, else the one that is installed, TensorRT before RTX.

    Raises:
        MissingExtraError: It is not installed, or neither is.
        BackendError: It is installed without its libraries.
    """
    raise NotImplementedError


def check_options(options: BuildOptions) -> None:
    """Refuse options that the flavour does not know, before anything expensive is done.

    Raises:
        ConfigError: An option of the other flavour, or a compute capability that this one does not build for.
        MissingExtraError: The flavour is not installed.
    """
    raise NotImplementedError


def build_plan(onnx_model: bytes, spec: ArtifactSpec, options: BuildOptions) -> Plan:
    """Build a plan from an ONNX model that `gmtool export` made.

    Args:
        onnx_model: The model, in one piece; its graph's precision becomes the plan's.
        spec: What the model says about itself.
        options: How.

    Returns:
        The plan and its sidecar; `gmtool.plan.write_plan` writes both.

    Raises:
        ArtifactError: TensorRT refuses the graph, or could not build it.
        ConfigError: Options that do not fit together.
        BackendError: TensorRT needs a GPU here, and there is none.
        MissingExtraError: The flavour is not installed.
    """
    raise NotImplementedError
