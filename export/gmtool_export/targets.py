"""Settings of the targets beside ONNX: a TensorRT plan, a model repository of Triton."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gmtool.artifact.shapes import parse_size
from gmtool.artifact.tensorrt_plan import PLAN_SUFFIX, Flavour

if TYPE_CHECKING:
    from gmtool_export.tensorrt.build import BuildOptions


@dataclass(frozen=True)
class TensorRTTarget:
    """A TensorRT plan; its precision is that of the export."""

    min_shape: str | None = None
    """Smallest batch, height and width, as `1x512x1024`; by default from the run's validation images."""
    opt_shape: str | None = None
    """Shape of highest speed."""
    max_shape: str | None = None
    """Largest batch, height and width."""
    runtime: Flavour | None = None
    """TensorRT or TensorRT-RTX; None for the installed one."""
    workspace_mib: int | None = None
    """Limit of the builder's scratch memory, MiB."""
    hardware_compatible: bool = False
    """Also for other GPUs, Ampere and later."""
    version_compatible: bool = False
    """Also for later versions of TensorRT."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs to build for, such as `("8.6",)`; TensorRT-RTX only."""
    timing_cache: str | os.PathLike[str] | None = None
    """File of kernel timings, for a faster second build."""

    def build_options(self, run_dir: Path) -> BuildOptions:
        """Return the builder's options for a run."""
        from gmtool_export.tensorrt.build import BuildOptions, choose_flavour
        from gmtool_export.tensorrt.profiles import profile_of_run

        shapes = {"--min-shape": self.min_shape, "--opt-shape": self.opt_shape, "--max-shape": self.max_shape}
        return BuildOptions(
            flavour=choose_flavour(self.runtime),
            profiles=(profile_of_run(run_dir, shapes),),
            shapes_given=self.opt_shape is not None or self.max_shape is not None,
            workspace_bytes=None if self.workspace_mib is None else self.workspace_mib << 20,
            hardware_compatible=self.hardware_compatible,
            version_compatible=self.version_compatible,
            compute_capabilities=self.compute_capabilities,
            timing_cache=None if self.timing_cache is None else Path(self.timing_cache),
        )


@dataclass(frozen=True)
class TritonTarget:
    """A model of a Triton model repository; a next version if it is there."""

    repository: str | os.PathLike[str]
    """Folder of `tritonserver --model-repository`; made if missing."""
    name: str | None = None
    """Name of the model; by default that of the run."""
    plans: tuple[Path, ...] = ()
    """Plans of the same model for other GPUs."""
    max_batch: int | None = None
    """Images at once. [8, or what the plans take]"""
    instances: int | None = None
    """Copies on each GPU. [1]"""
    queue_delay_us: int | None = None
    """Longest wait for a batch, microseconds. [2000]"""
    warmup: tuple[str, ...] | None = None
    """Image sizes to warm up with, as `512x1024`."""

    def check(self) -> None:
        """Check name and sizes before the model is made.

        Raises:
            UsageError: Not a name of a model, or not a size.
        """
        from gmtool_export.triton.repository import checked_name

        if self.name is not None:
            checked_name(self.name)
        _ = self.warmup_sizes

    @property
    def warmup_sizes(self) -> tuple[tuple[int, int], ...] | None:
        """(height, width) of the warm-up images.

        Raises:
            UsageError: Not a size.
        """
        return None if self.warmup is None else tuple(parse_size(size, where="--warmup") for size in self.warmup)

    def add(self, models: Sequence[Path]) -> None:
        """Put exported models into the repository: of an ONNX model and a plan, the plan; no OpenVINO model."""
        from gmtool.console import remark
        from gmtool_export.triton.config import TritonOptions
        from gmtool_export.triton.repository import export_triton

        chosen = [path for path in models if path.suffix == PLAN_SUFFIX] or [
            path for path in models if path.suffix == ".onnx"
        ]
        options = TritonOptions(self.max_batch, self.instances, self.queue_delay_us, self.warmup_sizes)
        made = export_triton([*chosen, *self.plans], Path(self.repository), name=self.name, options=options)
        remark(f"Triton: version {made.version} of {made.folder}, at most {made.max_batch} images at once")
