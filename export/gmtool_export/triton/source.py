"""Files of one version of a Triton model, checked to be of one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.artifact.spec import ArtifactSpec
from gmtool.artifact.tensorrt_plan import PLAN_SUFFIX, Plan, PlanSpec, read_plan
from gmtool.errors import ArtifactError, UsageError
from gmtool_export.triton.config import Kind

ONNX_FILE = "model.onnx"
"""File name that Triton's ONNX Runtime backend expects."""


@dataclass(frozen=True)
class TritonSource:
    """Content of a version: one ONNX model, or a plan for each kind of GPU."""

    kind: Kind
    spec: ArtifactSpec
    onnx: bytes | None
    plans: dict[str, Plan]
    """By file name."""


def read_source(artifacts: Sequence[Path]) -> TritonSource:
    """Read and check the files of one version: an ONNX model, or plans of one network for different GPUs.

    Raises:
        ArtifactError: A file is damaged or foreign, or the plans are of different models.
        UsageError: No files, or files of different kinds.
    """
    # Check the kinds of files
    plans = [path for path in artifacts if path.suffix == PLAN_SUFFIX]
    if not artifacts or (plans and len(plans) < len(artifacts)) or (not plans and len(artifacts) > 1):
        listed = ", ".join(map(str, artifacts)) or "nothing"
        raise UsageError(
            f"a Triton model is one ONNX file, or plans for different GPUs; got {listed}: export them separately"
        )
    # ONNX model
    if not plans:
        (path,) = artifacts
        if not path.is_file():
            raise ArtifactError(f"model {path}: no such file")
        content = path.read_bytes()
        return TritonSource("onnx", read_sealed_spec(content, where=path), content, {})
    # Plans, one for each kind of GPU
    found: dict[str, Plan] = {}
    for path in plans:
        loaded = read_plan(path)
        assert loaded.spec is not None  # only a trusted plan has none
        plan = Plan(loaded.content, loaded.spec)
        if plan.spec.flavour != "tensorrt":
            raise ArtifactError(
                f"{path} is a plan of TensorRT-RTX, which Triton does not load: use the ONNX model, or build "
                "the plan with TensorRT"
            )
        file_name = _file_name(plan.spec)
        if file_name in found:
            raise ArtifactError(f"{path}: another plan has the same compute capability {gpus_of(plan.spec)}")
        found[file_name] = plan
    return TritonSource("plan", _common_spec(plans, found), None, found)


def _common_spec(paths: Sequence[Path], plans: dict[str, Plan]) -> ArtifactSpec:
    """Return the spec that all plans share."""
    first, *others = (_identity(plan.spec) for plan in plans.values())
    for path, other in zip(paths[1:], others, strict=True):
        for what, value in other.items():
            if value != first[what]:
                raise ArtifactError(f"{path} and {paths[0]} differ in their {what}: they are different models")
    return next(iter(plans.values())).spec.artifact


def _identity(spec: PlanSpec) -> dict[str, object]:
    """Return the properties that all plans of a version must share."""
    artifact = spec.artifact
    return {
        "weights": artifact.provenance.weights_sha256,
        "precision": artifact.precision,
        "outputs": artifact.outputs,
        "classes": artifact.classes,
        "TensorRT version": spec.version,
    }


def _file_name(spec: PlanSpec) -> str:
    gpus = "_".join("sm" + one.replace(".", "").replace("+", "plus") for one in spec.compute_capabilities)
    return f"model_{gpus}{PLAN_SUFFIX}"


def gpus_of(spec: PlanSpec) -> str:
    """Return the compute capabilities of a plan as text."""
    return ", ".join(spec.compute_capabilities)
