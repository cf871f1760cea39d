"""A model repository for Triton Inference Server: folders, versions, and what must agree in them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifact.shapes import BatchShape
from gmtool.artifact.tensorrt_plan import PLAN_SUFFIX, PlanSpec, read_sidecar, write_plan
from gmtool.errors import ArtifactError, ConfigError
from gmtool.files import sweep_leftovers, temporary_path, write_atomically
from gmtool_export.triton.config import (
    CLASSES_KEY,
    DEFAULT_MAX_BATCH,
    DEFAULT_WARMUP,
    LABELS_NAME,
    ModelConfig,
    TritonOptions,
    apply_options,
    contract_of,
    labels_text,
    new_config,
    read_config,
    to_text,
    warmup_sizes,
)
from gmtool_export.triton.source import ONNX_FILE, TritonSource, gpus_of, read_source

CONFIG_FILE = "config.pbtxt"


@dataclass(frozen=True)
class TritonModel:
    """A version of a model as it was written."""

    folder: Path
    """`REPOSITORY/NAME`."""
    version: int
    files: tuple[str, ...]
    """Model files of that version."""
    max_batch: int
    kept: tuple[int, ...]
    """Versions that were there before and still are."""


def export_triton(
    artifacts: Sequence[Path],
    repository: Path,
    *,
    name: str | None = None,
    options: TritonOptions | None = None,
) -> TritonModel:
    """Put exported models into a model repository: a new model, or the next version of one that is there.

    What a `config.pbtxt` that is there says is kept, but for the options that are given. A process killed at any
    point leaves no half version.

    Args:
        artifacts: One ONNX model, or plans of one network for different GPUs.
        repository: Folder that `tritonserver --model-repository` is given; made if missing.
        name: The model's name there; default: that of its training run.
        options: Batching, instances, warm-up.

    Raises:
        ArtifactError: A file is damaged or foreign, the files do not belong together, or the model of this name
            is another one.
        ConfigError: Options that the plans do not allow.
        MissingExtraError: tritonclient, which brings the schema, is not installed.
    """
    options = options or TritonOptions()
    source = read_source(artifacts)
    folder = repository / _checked_name(name or source.spec.provenance.run)
    versions = _versions(folder)
    config = _config(folder, versions, source, options)
    version = max(versions, default=0) + 1
    _check_plans(config, folder, versions, source)
    if versions:
        _add_version(folder, version, source, config)
    else:
        _add_model(folder, source, config)
    files = (*source.plans, *([ONNX_FILE] if source.onnx is not None else []))
    return TritonModel(folder, version, files, config.max_batch_size, tuple(versions))


def _config(folder: Path, versions: list[int], source: TritonSource, options: TritonOptions) -> ModelConfig:
    """Return the configuration that stands, or a new one, with the options over it."""
    specs = [plan.spec for plan in source.plans.values()]
    profiles = [profile for spec in specs for profile in spec.profiles]
    tuned = dict.fromkeys((profile.opt.height, profile.opt.width) for profile in profiles)
    warmup = [size for size in tuned if all(_takes(spec, *size) for spec in specs)]
    config = new_config(
        folder.name,
        source.spec,
        source.kind,
        max_batch=min((profile.max.batch for profile in profiles), default=DEFAULT_MAX_BATCH),
        warmup=tuple(warmup) if profiles else DEFAULT_WARMUP,
    )
    if versions:
        standing = read_config(folder / CONFIG_FILE)
        if contract_of(standing) != contract_of(config):
            raise ArtifactError(
                f"{folder} is another model ({contract_of(standing)}) than this one ({contract_of(config)}): its "
                "clients would break; give another --triton-name"
            )
        standing.parameters[CLASSES_KEY].CopyFrom(config.parameters[CLASSES_KEY])  # colours may differ
        config = standing
    apply_options(config, options)
    _name_plans(config, source)
    return config


def _name_plans(config: ModelConfig, source: TritonSource) -> None:
    """Tell Triton which file is for which GPU; one for several kinds is what all others get."""
    for file_name, plan in source.plans.items():
        for capability in plan.spec.compute_capabilities:
            if capability.endswith("+"):
                config.default_model_filename = file_name
            else:
                config.cc_model_filenames[capability] = file_name
        profiles = [str(index) for index in range(len(plan.spec.profiles))]
        if len(profiles) > 1:
            for group in config.instance_group:
                group.profile[:] = profiles


def _check_plans(config: ModelConfig, folder: Path, versions: list[int], source: TritonSource) -> None:
    """Refuse a configuration that a plan of this version, or of one that stays, does not allow."""
    named = {*config.cc_model_filenames.values(), config.default_model_filename} - {""}
    missing = sorted(named - set(source.plans))
    if missing:
        raise ArtifactError(
            f"{folder} has {', '.join(missing)} in its versions, and this one would not: build the plan for that "
            "GPU too, or give another --triton-name"
        )
    specs = {f"the plan for {gpus_of(plan.spec)}": plan.spec for plan in source.plans.values()}
    for version in versions:
        for path in sorted((folder / str(version)).glob(f"*{PLAN_SUFFIX}")):
            specs[str(path)] = read_sidecar(path)
    for what, spec in specs.items():
        _check_sizes(config, what, spec)


def _check_sizes(config: ModelConfig, what: str, spec: PlanSpec) -> None:
    """Refuse batches or warm-up images that a plan does not take."""
    for profile in spec.profiles:
        if config.max_batch_size > profile.max.batch:
            raise ConfigError(
                f"--max-batch {config.max_batch_size}: {what} takes at most {profile.max.batch} images at "
                "once: lower it, or build the plan with a larger --max-shape"
            )
        if profile.min.batch > 1:
            raise ConfigError(
                f"{what} takes at least {profile.min.batch} images at once, but Triton passes single ones on: "
                "build it with --min-shape 1xHxW"
            )
    for height, width in warmup_sizes(config):
        if not _takes(spec, height, width):
            takes = "; ".join(map(str, spec.profiles))
            raise ConfigError(f"--warmup {height}x{width}: {what} takes {takes}: warm up with a size inside")


def _takes(spec: PlanSpec, height: int, width: int) -> bool:
    return any(profile.misfit(BatchShape(profile.opt.batch, height, width)) is None for profile in spec.profiles)


def _add_model(folder: Path, source: TritonSource, config: ModelConfig) -> None:
    """Write a new model beside the repository, then move it in: Triton takes every folder in it for a model."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} exists and has no version of a model in it: give another --triton-name")
    repository = folder.parent
    repository.mkdir(parents=True, exist_ok=True)
    outside = repository.resolve().parent
    # A repository that is a mount of its own leaves only itself to write to
    beside = os.access(outside, os.W_OK) and outside.stat().st_dev == repository.stat().st_dev
    staging = _fresh(outside if beside else repository)
    try:
        (staging / "1").mkdir()
        _write_version(staging / "1", source)
        write_atomically(staging / LABELS_NAME, labels_text(source.spec.classes))
        write_atomically(staging / CONFIG_FILE, to_text(config))
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _add_version(folder: Path, version: int, source: TritonSource, config: ModelConfig) -> None:
    """Write a version under a name that Triton takes for none, then rename it."""
    staging = _fresh(folder)
    try:
        _write_version(staging, source)
        # First what is right for the old versions too, then the new one
        if to_text(config) != to_text(read_config(folder / CONFIG_FILE)):
            write_atomically(folder / CONFIG_FILE, to_text(config))
        staging.rename(folder / str(version))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_version(folder: Path, source: TritonSource) -> None:
    if source.onnx is not None:
        write_atomically(folder / ONNX_FILE, source.onnx)
    for name, plan in source.plans.items():
        write_plan(plan, folder / name)


def _fresh(parent: Path) -> Path:
    """Return a new folder with a hidden name; what killed processes left under such names is deleted."""
    sweep_leftovers(parent)
    folder = temporary_path(parent)
    folder.mkdir()
    return folder


def _versions(folder: Path) -> list[int]:
    """Return the numbers of the versions in a model's folder, as Triton reads them."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and not name.startswith("0"))


def _checked_name(name: str) -> str:
    """Return a name that is a folder and a part of a URL."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ConfigError(f"--triton-name {name}: expected letters, digits, dots, hyphens and underscores")
    return name
