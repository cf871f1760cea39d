"""Build a TensorRT plan from an ONNX model, with TensorRT or TensorRT-RTX."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from gmtool.artifact.nvidia import (
    TensorRTLog,
    collector_held_off,
    load_tensorrt,
    read_gpu,
    tensorrt_log,
    this_platform,
)
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.artifact.spec import ArtifactSpec, Precision
from gmtool.artifact.tensorrt_plan import FLAVOUR_TITLES, Flavour, Plan, PlanSpec, release
from gmtool.console import remark
from gmtool.errors import ArtifactError, ConfigError, MissingExtraError, UsageError
from gmtool.files import write_atomically
from gmtool_export.tensorrt.profiles import card_memory, fit_to_memory

OLDEST_COMPATIBLE = "8.0"
"""Ampere: oldest GPUs of `--hardware-compatible`, and of TensorRT-RTX's default."""


@dataclass(frozen=True)
class BuildOptions:
    """Build options of a plan. Its precision is that of the ONNX graph (strongly typed)."""

    flavour: Flavour
    """TensorRT or TensorRT-RTX; see `choose_flavour`."""
    profiles: tuple[ShapeProfile, ...]
    """Optimisation profiles; at least one."""
    shapes_given: bool = True
    """The user gave the profiles; else they may be cut to the memory of the card: see `fitted`."""
    workspace_bytes: int | None = None
    """Limit of the builder's workspace, bytes; None for its default."""
    hardware_compatible: bool = False
    """Run on other GPUs too, Ampere and later; TensorRT only."""
    version_compatible: bool = False
    """Run with later versions of TensorRT too; TensorRT only."""
    compute_capabilities: tuple[str, ...] = ()
    """Compute capabilities to build for, such as ("8.6", "12.0"); TensorRT-RTX only."""
    timing_cache: Path | None = None
    """Timing cache, read before the build and written after it; TensorRT only."""
    verbose: bool = False
    """Write the builder's log to stderr."""


def choose_flavour(asked: Flavour | None = None) -> Flavour:
    """Return the flavour to build with: the requested one, else the installed one, TensorRT before TensorRT-RTX.

    Raises:
        MissingExtraError: The flavour is not installed, or none is.
        BackendError: It is installed without its libraries.
    """
    installed = (name for name in FLAVOUR_TITLES if importlib.util.find_spec(name) is not None)
    flavour = asked or next(installed, None)
    if flavour is None:
        raise MissingExtraError(
            'a TensorRT plan needs TensorRT, which is not installed: pip install "gmtool[trt]", or for GeForce '
            'and RTX cards, and to build without a GPU, pip install "gmtool[trt-rtx]"'
        )
    load_tensorrt(flavour)
    return flavour


def check_options(options: BuildOptions) -> None:
    """Check the options against the flavour, before anything slow.

    Raises:
        UsageError: An option of the other flavour, or an unsupported compute capability.
        MissingExtraError: The flavour is not installed.
        BackendError: It is installed without its libraries.
    """
    # Options of both flavours
    trt, title = load_tensorrt(options.flavour), FLAVOUR_TITLES[options.flavour]
    if not options.profiles:
        raise UsageError("a plan needs at least one range of shapes: --min-shape, --opt-shape, --max-shape")
    if options.workspace_bytes is not None and options.workspace_bytes <= 0:
        raise UsageError(f"workspace of {options.workspace_bytes} bytes: expected more than 0")
    # TensorRT
    if options.flavour == "tensorrt":
        if options.compute_capabilities:
            raise UsageError(
                "--compute-capability: TensorRT builds for the GPU of this machine; use --hardware-compatible, "
                "or TensorRT-RTX"
            )
        return
    # TensorRT-RTX
    for option, given, instead in (
        ("--hardware-compatible", options.hardware_compatible, "its plans run on several GPUs anyway"),
        ("--version-compatible", options.version_compatible, "build again with each release"),
        ("--timing-cache", options.timing_cache is not None, "it times kernels where a plan is run"),
    ):
        if given:
            raise UsageError(f"{option}: {title} has no such option: {instead}")
    known = _known_capabilities(trt)
    for capability in options.compute_capabilities:
        if capability not in known:
            raise UsageError(
                f"--compute-capability {capability}: {title} {trt.__version__} builds for {', '.join(known)}; "
                "for data-centre GPUs (9.0, 10.0) use TensorRT"
            )


def fitted(options: BuildOptions, spec: ArtifactSpec) -> BuildOptions:
    """Return the options with profiles that fit into the memory of the card."""
    memory, given = card_memory(options.flavour), options.shapes_given
    profiles = tuple(fit_to_memory(profile, spec, memory, given=given) for profile in options.profiles)
    return replace(options, profiles=profiles)


def build_plan(onnx_model: bytes, spec: ArtifactSpec, options: BuildOptions) -> Plan:
    """Build a plan from an ONNX model that `gmtool export` made.

    Args:
        onnx_model: Content of the ONNX file; its graph's precision becomes the plan's.
        spec: Spec of the model.
        options: Build options.

    Returns:
        The plan and its sidecar; `gmtool.artifact.tensorrt_plan.write_plan` writes both.

    Raises:
        ArtifactError: TensorRT refuses the graph or cannot build it, or its precision is not that of `spec`.
        UsageError: Contradictory options.
        BackendError: TensorRT needs a GPU, and there is none.
        MissingExtraError: The flavour is not installed.
    """
    check_options(options)
    trt = load_tensorrt(options.flavour)
    # TensorRT times kernels on the GPU that it builds for; TensorRT-RTX does so where the plan runs
    gpu = read_gpu() if options.flavour == "tensorrt" else None
    gc.collect()  # the garbage collector is off during the build, which may take minutes
    content = _build(trt, onnx_model, spec, options)
    sidecar = PlanSpec(
        artifact=spec,
        plan_sha256=hashlib.sha256(content).hexdigest(),
        onnx_sha256=hashlib.sha256(onnx_model).hexdigest(),
        flavour=options.flavour,
        version=trt.__version__,
        gpu=gpu.name if gpu else None,
        compute_capabilities=_target_capabilities(trt, options, gpu.compute_capability if gpu else None),
        platform=this_platform(),
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
        profiles=options.profiles,
        workspace_bytes=options.workspace_bytes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Plan(content, sidecar)


@collector_held_off
def _build(trt: ModuleType, onnx_model: bytes, spec: ArtifactSpec, options: BuildOptions) -> bytes:
    """Return the content of the plan. TensorRT's objects are released on return or error."""
    title, log = FLAVOUR_TITLES[options.flavour], tensorrt_log(options.flavour)
    log.start(verbose=options.verbose)
    builder = trt.Builder(log.logger)
    network = _parse(trt, builder, log, onnx_model, title)
    _check_network(trt, network, spec)
    config = builder.create_builder_config()
    _configure(trt, config, spec, options)
    for profile in options.profiles:
        _add_profile(builder, config, spec.input.name, profile)
    if options.timing_cache is not None:
        _read_timing_cache(config, options.timing_cache)
    log.start(verbose=options.verbose)  # only errors of the build itself explain its failure
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ArtifactError(f"{title} {trt.__version__} could not build a plan: {log.reason()}")
    if options.timing_cache is not None:
        write_atomically(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(serialized)


def _parse(trt: ModuleType, builder: Any, log: TensorRTLog, onnx_model: bytes, title: str) -> Any:
    """Return the strongly typed network of an ONNX model: tensors keep the types of the graph."""
    # Needed before TensorRT 11, where all networks are strongly typed
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse(onnx_model):
        return network
    error = parser.get_error(0) if parser.num_errors else None
    if error is None:
        raise ArtifactError(f"{title} {trt.__version__} refuses the ONNX graph: {log.reason()}")
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    reason = " ".join(error.desc().split())[:300]
    raise ArtifactError(f"{title} {trt.__version__} refuses the ONNX graph: {node}{reason}")


def _check_network(trt: ModuleType, network: Any, spec: ArtifactSpec) -> None:
    """Check inputs, outputs and precision of a graph against its spec."""
    inputs = [network.get_input(index).name for index in range(network.num_inputs)]
    outputs = [network.get_output(index).name for index in range(network.num_outputs)]
    if inputs != [spec.input.name] or outputs != list(spec.outputs):
        raise ArtifactError(
            f"the ONNX graph takes {inputs} and gives {outputs}; its description says {[spec.input.name]} and "
            f"{list(spec.outputs)}"
        )
    built = _precision(trt, network)
    if built != spec.precision:
        raise ArtifactError(f"the ONNX graph computes in {built}, and its description says {spec.precision}")


def _precision(trt: ModuleType, network: Any) -> Precision:
    """Return the precision of a strongly typed network: int8 or fp16 if any tensor has that type."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    types = {layer.get_output(index).dtype for layer in layers for index in range(layer.num_outputs)}
    if trt.DataType.INT8 in types:
        return "int8"
    return "fp16" if trt.DataType.HALF in types else "fp32"


def _configure(trt: ModuleType, config: Any, spec: ArtifactSpec, options: BuildOptions) -> None:
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    # From TensorRT 10.10: a context needs the memory of its images, not of the profile's largest
    resize = getattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)
    if resize is not None:
        config.set_preview_feature(resize, True)
    if spec.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, with a mantissa of 10 bits
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.compute_capabilities:
        wanted = sorted(set(options.compute_capabilities), key=release)
        config.num_compute_capabilities = len(wanted)
        for index, capability in enumerate(wanted):
            member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""))
            if not config.set_compute_capability(member, index):
                raise UsageError(f"--compute-capability {capability}: refused by TensorRT-RTX")


def _add_profile(builder: Any, config: Any, name: str, profile: ShapeProfile) -> None:
    made = builder.create_optimization_profile()
    made.set_shape(name, _dims(profile.min), _dims(profile.opt), _dims(profile.max))
    if config.add_optimization_profile(made) < 0:
        raise ConfigError(f"TensorRT refuses the shapes {profile}")


def _dims(shape: BatchShape) -> tuple[int, int, int, int]:
    return shape.batch, shape.height, shape.width, 3


def _read_timing_cache(config: Any, path: Path) -> None:
    """Load the timing cache, if it is of this GPU and this TensorRT; else start a new one."""
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return
    remark(f"timing cache {path} is damaged, or of another GPU or TensorRT: starting a new one")
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _known_capabilities(trt: ModuleType) -> list[str]:
    """Return the compute capabilities that TensorRT-RTX builds for, lowest first: SM86 is "8.6", SM120 "12.0"."""
    numbers = [name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return sorted((f"{number[:-1]}.{number[-1]}" for number in numbers), key=release)


def _target_capabilities(trt: ModuleType, options: BuildOptions, here: str | None) -> tuple[str, ...]:
    """Return the compute capabilities that a plan runs on, for its sidecar."""
    if here is not None:
        return (f"{OLDEST_COMPATIBLE}+",) if options.hardware_compatible else (here,)
    if options.compute_capabilities:
        return tuple(sorted(set(options.compute_capabilities), key=release))
    # TensorRT-RTX's default: all known GPUs from Ampere on, and later ones
    known = [name for name in _known_capabilities(trt) if release(name) >= release(OLDEST_COMPATIBLE)]
    return (*known[:-1], f"{known[-1]}+")
