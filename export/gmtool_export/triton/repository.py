"""Model repository of Triton Inference Server: add models and versions."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifact.shapes import BatchShape
from gmtool.artifact.tensorrt_plan import PLAN_SUFFIX, PlanSpec, read_sidecar, write_plan
from gmtool.errors import ArtifactError, ConfigError, UsageError
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
    """Written version of a model."""

    folder: Path
    """`REPOSITORY/NAME`."""
    version: int
    files: tuple[str, ...]
    """Model files of the version."""
    max_batch: int
    kept: tuple[int, ...]
    """Earlier versions, which are kept."""


def export_triton(
    artifacts: Sequence[Path],
    repository: Path,
    *,
    name: str | None = None,
    options: TritonOptions | None = None,
) -> TritonModel:
    """Add exported models to a model repository: a new model, or the next version of an existing one.

    An existing `config.pbtxt` is kept except for the given options. A killed process leaves no incomplete version.

    Args:
        artifacts: One ONNX model, or plans of one network for different GPUs.
        repository: Folder for `tritonserver --model-repository`; created if missing.
        name: Name of the model in the repository; default: that of its training run.
        options: Batching, instances, warm-up.

    Raises:
        ArtifactError: A file is damaged or foreign, the files are of different models, or the name belongs to
            another model.
        ConfigError: Options that the plans do not allow.
        UsageError: Not a name of a model.
        MissingExtraError: tritonclient is not installed.
    """
    options = options or TritonOptions()
    source = read_source(artifacts)
    folder = repository / checked_name(name or source.spec.provenance.run)
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
    """Return the existing configuration, or a new one, with the options applied."""
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
        standing.parameters[CLASSES_KEY].CopyFrom(config.parameters[CLASSES_KEY])  # the palette may differ
        config = standing
    apply_options(config, options)
    _name_plans(config, source)
    return config


def _name_plans(config: ModelConfig, source: TritonSource) -> None:
    """Set the plan file of each compute capability; a hardware-compatible plan is the default."""
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
    """Check the configuration against the plans of all versions."""
    named = {*config.cc_model_filenames.values(), config.default_model_filename} - {""}
    missing = sorted(named - set(source.plans))
    if missing:
        raise ArtifactError(
            f"{folder} has {', '.join(missing)} in its versions, the new one lacks it: build the plan for that "
            "GPU too, or give another --triton-name"
        )
    specs = {f"the plan for {gpus_of(plan.spec)}": plan.spec for plan in source.plans.values()}
    for version in versions:
        for path in sorted((folder / str(version)).glob(f"*{PLAN_SUFFIX}")):
            specs[str(path)] = read_sidecar(path)
    for what, spec in specs.items():
        _check_sizes(config, what, spec)


def _check_sizes(config: ModelConfig, what: str, spec: PlanSpec) -> None:
    """Check batch size and warm-up images against the profiles of a plan."""
    for profile in spec.profiles:
        if config.max_batch_size > profile.max.batch:
            raise ConfigError(
                f"--max-batch {config.max_batch_size}: {what} takes at most {profile.max.batch} images at "
                "once: lower it, or build the plan with a larger --max-shape"
            )
        if profile.min.batch > 1:
            raise ConfigError(
                f"{what} takes at least {profile.min.batch} images at once, but Triton may pass single ones: "
                "build it with --min-shape 1xHxW"
            )
    for height, width in warmup_sizes(config):
        if not _takes(spec, height, width):
            takes = "; ".join(map(str, spec.profiles))
            raise ConfigError(f"--warmup {height}x{width}: {what} takes {takes}: choose a size inside")


def _takes(spec: PlanSpec, height: int, width: int) -> bool:
    return any(profile.misfit(BatchShape(profile.opt.batch, height, width)) is None for profile in spec.profiles)


def _add_model(folder: Path, source: TritonSource, config: ModelConfig) -> None:
    """Write a new model beside the repository, then move it in: Triton treats every folder in it as a model."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} exists and contains no version of a model: give another --triton-name")
    repository = folder.parent
    repository.mkdir(parents=True, exist_ok=True)
    outside = repository.resolve().parent
    # If the repository is a mount point, a folder outside cannot be renamed into it
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
    """Write a version under a name that Triton ignores, then rename it."""
    staging = _fresh(folder)
    try:
        _write_version(staging, source)
        # First the configuration, which fits old versions too, then the new version
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
    """Return a new hidden folder; delete those of killed processes."""
    sweep_leftovers(parent)
    folder = temporary_path(parent)
    folder.mkdir()
    return folder


def _versions(folder: Path) -> list[int]:
    """Return the version numbers in a model's folder, by Triton's rules."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and not name.startswith("0"))


def checked_name(name: str) -> str:
    """Return the name if it is valid as a folder and in a URL.

    Raises:
        UsageError: It is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise UsageError(f"--triton-name {name}: expected letters, digits, dots, hyphens and underscores")
    return name
