"""TensorRT backend: check a plan against this machine, load it, run it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from gmtool.artifact.nvidia import EXTRAS, collector_held_off, load_tensorrt, tensorrt_log, this_host
from gmtool.artifact.tensorrt_plan import (
    FLAVOUR_TITLES,
    Flavour,
    Host,
    LoadedPlan,
    PlanSpec,
    flavour_of_name,
    read_plan,
)
from gmtool.console import remark
from gmtool.errors import ArtifactError, BackendError, needs_extra
from gmtool.files import open_unlinked, write_atomically
from gmtool.images import UInt8Array
from gmtool_serving.backends.base import InferenceDevice, Prediction, to_prediction

KERNELS_SUFFIX = ".kernels"
MAX_KERNELS_BYTES = 1 << 30


class TrtBackend:
    """TensorRT plan on the GPU.

    A plan is executable. Its sidecar is read first; TensorRT gets the plan only if its hash, TensorRT's version,
    the GPU and the platform match the sidecar.

    Args:
        path: `.plan` file.
        device: `auto` and `cuda` are the same here; `cpu` is refused.
        trust: Load a plan without a sidecar.

    Raises:
        ArtifactError: The file is missing, damaged, foreign, or for another machine.
        BackendError: No GPU, or TensorRT cannot use it.
        MissingExtraError: TensorRT is not installed.
    """

    device: Literal["cpu", "cuda"] = "cuda"

    @collector_held_off
    def __init__(self, path: Path, *, device: InferenceDevice = "auto", trust: bool = False) -> None:
        if device == "cpu":
            raise BackendError(
                f"--device cpu: {path} is a TensorRT plan, which needs an NVIDIA GPU: use the ONNX model"
            )
        plan = read_plan(path, trust=trust)
        flavour = plan.spec.flavour if plan.spec else flavour_of_name(path)
        host = this_host(flavour)
        if plan.spec is not None:
            refuse_misfit(path, plan.spec, host)
        self.spec, self.model, self.model_sha256 = plan.artifact, str(path), plan.sha256
        self.description = f"{FLAVOUR_TITLES[flavour]} {host.version} on {host.gpu.name}"
        engine = deserialize(flavour, plan, where=path)
        with needs_extra(EXTRAS[flavour], "running a plan"):
            from gmtool_serving.backends.tensorrt_engine import TrtEngine
        self._engine = TrtEngine(
            load_tensorrt(flavour),
            engine,
            tensorrt_log(flavour),
            kernels=read_kernels(path),
            keep_kernels=lambda kernels: keep_kernels(path, kernels),
        )
        self.lanes = self._engine.lanes
        opt = self._engine.profiles[0].opt
        self.preferred_batch, self.preferred_size = opt.batch, (opt.height, opt.width)
        if self._engine.inputs != [self.spec.input.name] or set(self._engine.outputs) != set(self.spec.outputs):
            self.close()
            raise ArtifactError(
                f"{path} takes {self._engine.inputs} and gives {self._engine.outputs}; its description says "
                f"{[self.spec.input.name]} and {list(self.spec.outputs)}"
            )

    def predict(self, images: UInt8Array) -> Prediction:
        """Return the model's outputs for RGB images, (N, H, W, 3) uint8.

        Raises:
            BackendError: Shape outside of the plan's profiles, not enough memory, or TensorRT failed.
        """
        return to_prediction(self._engine.run(images))

    def close(self) -> None:
        """Free the GPU memory; the backend cannot be used afterwards."""
        self._engine.close()


def kernels_path(plan: Path) -> Path:
    """Return the file of the kernels that TensorRT-RTX compiled for a plan, beside it."""
    return plan.with_name(plan.name + KERNELS_SUFFIX)


def read_kernels(plan: Path) -> bytes:
    """Return the kernels that were compiled for a plan; empty if there are none, or if they are older than it."""
    path = kernels_path(plan)
    try:
        status = path.lstat()
        if status.st_mtime < plan.stat().st_mtime or status.st_size > MAX_KERNELS_BYTES:
            return b""
        with os.fdopen(open_unlinked(path), "rb") as file:
            return file.read()
    except OSError:
        return b""


def keep_kernels(plan: Path, kernels: bytes) -> None:
    """Write the kernels that were compiled for a plan; without them the next start is slower."""
    with contextlib.suppress(OSError):
        write_atomically(kernels_path(plan), kernels)


def refuse_misfit(path: Path, spec: PlanSpec, host: Host) -> None:
    """Check that a plan runs on this machine.

    Raises:
        ArtifactError: It does not; the message lists every reason.
    """
    reasons = spec.misfits(host)
    if reasons:
        raise ArtifactError(f"{path} does not run here: {'; '.join(reasons)}: build it with gmtool export --trt")
    if spec.gpu is not None and spec.gpu != host.gpu.name and not spec.hardware_compatible:
        remark(f"{path} was built on {spec.gpu}; it may be slower on {host.gpu.name} than a plan built here")


@collector_held_off
def deserialize(flavour: Flavour, plan: LoadedPlan, *, where: Path) -> Any:
    """Return the TensorRT engine of a plan.

    Raises:
        ArtifactError: TensorRT refuses it.
    """
    trt, log = load_tensorrt(flavour), tensorrt_log(flavour)
    log.start()
    runtime = trt.Runtime(log.logger)
    # A version-compatible plan contains code of its own runtime
    runtime.engine_host_code_allowed = plan.spec is None or plan.spec.version_compatible
    faults = _faults(trt, runtime, plan.content)
    engine = None if faults else runtime.deserialize_cuda_engine(plan.content)
    if engine is None:
        title = FLAVOUR_TITLES[flavour]
        raise ArtifactError(f"{where}: {title} {trt.__version__} refuses it: {', '.join(faults) or log.reason()}")
    return engine


def _faults(trt: ModuleType, runtime: Any, content: bytes) -> list[str]:
    """Return TensorRT-RTX's validity errors of a plan; empty for TensorRT, which has no such check."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    _, found = runtime.get_engine_validity(content)
    return [
        name.lower().replace("_", " ")
        for name, fault in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(found) & int(fault)
    ]
