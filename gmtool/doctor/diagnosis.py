"""Judge facts on a machine: what works, is absent, doubtful or broken, and the remedy."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gmtool.artifact.tensorrt_plan import FLAVOUR_TITLES, Flavour, release
from gmtool.doctor.probes import Probe
from gmtool.resources import Resources

State = Literal["ok", "absent", "warning", "problem"]

GIB = 2**30
SMALL_MEMORY_BYTES = 8 * GIB
SMALL_SHARED_BYTES = GIB // 2
"""Loader processes pass batches on through it; containers often have 64 MiB."""
SMALL_DISK_BYTES = 5 * GIB
FEW_OPEN_FILES = 1024
NOT_NEEDED = ("AzureExecutionProvider",)
"""Providers of ONNX Runtime that compute elsewhere."""
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    part: str
    state: State
    text: str
    remedy: str | None = None
    """What to do, if there is something."""


@dataclass(frozen=True)
class Extra:
    """An extra of gmtool."""

    missing: tuple[str, ...]
    """Its packages that are not installed."""
    outdated: tuple[str, ...]
    """Those that are too old, with what is expected."""
    empty: bool
    """Whether it has no packages for this platform."""


@dataclass(frozen=True)
class Facts:
    """Facts about the machine. A probe is None where the package is not installed."""

    extras: Mapping[str, Extra]
    torch: Probe | None
    driver: Probe
    onnxruntime: Probe | None
    onnxruntime_packages: tuple[str, ...]
    """Installed packages that bring a module `onnxruntime`."""
    providers: Mapping[str, Probe]
    tensorrt: Mapping[Flavour, Probe | None]
    cuda_bindings: str | None
    """Version of cuda-bindings, which copies to the GPU for TensorRT."""
    resources: Resources
    uncompiled: str | None = None
    """Reason why each process compiles packages anew; None if their bytecode is kept."""


def diagnose(facts: Facts) -> list[Finding]:
    """Return a finding for everything that was looked at."""
    return [
        *_extras(facts.extras),
        *_driver(facts.driver),
        *_torch(facts),
        *_onnxruntime(facts),
        *_tensorrt(facts),
        *_resources(facts.resources),
        _bytecode(facts.uncompiled),
    ]


def _extras(extras: Mapping[str, Extra]) -> Iterator[Finding]:
    for name, extra in extras.items():
        part, command = f"extra {name}", f'pip install --upgrade "gmtool[{name}]"'
        if extra.empty:
            yield Finding(part, "absent", "has no packages for this platform")
        elif extra.missing:
            yield Finding(part, "absent", f"not installed: {', '.join(extra.missing)}", command)
        elif extra.outdated:
            yield Finding(part, "problem", f"too old: {', '.join(extra.outdated)}", command)
        else:
            yield Finding(part, "ok", "installed")


def gpus_of(facts: Facts) -> Sequence[dict[str, Any]]:
    """Return the GPUs that the driver knows."""
    gpus: Sequence[dict[str, Any]] = facts.driver.value.get("gpus", [])
    return gpus


def _driver(probe: Probe) -> Iterator[Finding]:
    part, value = "NVIDIA driver", probe.value
    if probe.failure is not None:
        yield Finding(part, "problem", f"cuInit: {probe.failure}", "reinstall the driver, or restart the machine")
    elif not value["there"]:
        yield Finding(part, "absent", "none: everything is computed on the processor")
    elif value["status"] == 100:  # CUDA_ERROR_NO_DEVICE
        hint = "in a container, start it with --gpus all; or CUDA_VISIBLE_DEVICES hides them"
        yield Finding(part, "absent", f"CUDA {value['cuda']}, but no GPU", hint)
    elif value["status"] != 0:
        reason = {
            803: "the driver's library is of another version than its kernel module",
            804: "its compatibility library does not know this GPU",
        }.get(value["status"], "see CUresult in CUDA's documentation")
        hint = "restart the machine, or install the driver again"
        yield Finding(part, "problem", f"cuInit fails with {value['status']}: {reason}", hint)
    else:
        yield Finding(part, "ok", f"{value['release'] or 'release not told'}, up to CUDA {value['cuda']}")
        for index, gpu in enumerate(value["gpus"]):
            memory = gpu["memory_bytes"] / GIB
            text = f"{gpu['name']}, compute capability {gpu['compute_capability']}, {memory:.0f} GiB"
            yield Finding(f"GPU {index}", "ok", text)


def _too_new(facts: Facts, cuda: str | None) -> str | None:
    """Return why a package built with a version of CUDA does not run on this driver; None if it does."""
    known = facts.driver.value.get("cuda")
    if not cuda or not known or not gpus_of(facts) or release(cuda)[0] <= release(known)[0]:
        return None
    return f"it is built for CUDA {cuda}, and the driver knows CUDA up to {known}"


def _torch(facts: Facts) -> Iterator[Finding]:
    probe = facts.torch
    if probe is None:
        yield Finding("torch", "absent", "not installed; only training and exporting need it")
        return
    if probe.failure is not None:
        hint = 'pip install --force-reinstall "gmtool[train]"'
        yield Finding("torch", "problem", f"does not start: {probe.failure}", hint)
        return
    value, gpus = probe.value, gpus_of(facts)
    build = f"{value['version']}, built for {'CUDA ' + value['cuda'] if value['cuda'] else 'the processor'}"
    other_build = "choose a build for this driver on https://pytorch.org/get-started"
    too_new = _too_new(facts, value["cuda"])
    if too_new is not None:
        yield Finding("torch", "problem", f"{build}: {too_new}", f"update the driver, or {other_build}")
    elif value["error"] is not None:
        yield Finding("torch", "problem", f"{build}: a first computation fails: {value['error']}", other_build)
    elif gpus and value["cuda"] is None:
        yield Finding("torch", "warning", f"{build}: the GPU is not used", other_build)
    elif gpus and value["devices"] == 0:
        yield Finding("torch", "problem", f"{build}, but it sees no GPU", other_build)
    elif value["devices"]:
        precision = "bf16-mixed" if value["bf16"] else "16-mixed or 32-true"
        yield Finding("torch", "ok", f"{build}; {value['devices']} GPUs, {precision}")
    else:
        yield Finding("torch", "ok", f"{build}; computes on {'an Apple GPU' if value['mps'] else 'the processor'}")


def _onnxruntime(facts: Facts) -> Iterator[Finding]:
    packages, probe = facts.onnxruntime_packages, facts.onnxruntime
    if len(packages) > 1:
        text = f"{' and '.join(packages)} are installed over each other: which files win is chance"
        yield Finding(
            "onnxruntime", "problem", text, f'pip uninstall -y {" ".join(packages)}; pip install "gmtool[serve]"'
        )
    if probe is None:
        hint = 'pip install "gmtool[serve]"'
        yield Finding("onnxruntime", "absent", "not installed: models can neither be run nor exported", hint)
        return
    if probe.failure is not None:
        hint = 'pip install --force-reinstall "gmtool[serve]"'
        yield Finding("onnxruntime", "problem", f"does not start: {probe.failure}", hint)
        return
    built = f", built for CUDA {probe.value['cuda']}" if probe.value["cuda"] else ""
    yield Finding("onnxruntime", "ok", f"{probe.value['version']}{built}")
    for name, tried in facts.providers.items():
        yield _provider(facts, name, tried)


def _provider(facts: Facts, name: str, probe: Probe) -> Finding:
    got = probe.value.get("got")
    part = f"onnxruntime {name.removesuffix('ExecutionProvider')}"
    reason = probe.failure or probe.value.get("stderr") or f"got {got}"
    if got == name:
        return Finding(part, "ok", "loads and computes")
    if name == TENSORRT_PROVIDER:
        # gmtool runs plans with TensorRT itself
        installed = facts.tensorrt.get("tensorrt")
        version = installed.value.get("version") if installed is not None else None
        other = f", and TensorRT {version} is installed" if version and release(version)[0] != 10 else ""
        return Finding(
            part, "absent", f"does not load: it wants TensorRT 10 (libnvinfer.so.10){other}; not needed"
        )
    if name == CUDA_PROVIDER and not gpus_of(facts):
        return Finding(part, "absent", "cannot be used: there is no GPU")
    hint = 'pip install --force-reinstall "gmtool[serve]"'
    if name == CUDA_PROVIDER:
        assert facts.onnxruntime is not None
        too_new = _too_new(facts, facts.onnxruntime.value["cuda"])
        reason = too_new or reason
        hint = "update the driver" if too_new else 'pip install "gmtool[cuda]"'
    return Finding(part, "problem", f"does not work: {reason}", hint)


def _tensorrt(facts: Facts) -> Iterator[Finding]:
    gpus = gpus_of(facts)
    for flavour, probe in facts.tensorrt.items():
        title = FLAVOUR_TITLES[flavour]
        if probe is None:
            yield Finding(title, "absent", "not installed")
            continue
        error = probe.failure or probe.value["error"]
        if error is not None:
            yield Finding(title, "problem", f"does not load: {error}")
            continue
        version, known = probe.value["version"], probe.value["compute_capabilities"]
        foreign = [gpu["compute_capability"] for gpu in gpus if known and gpu["compute_capability"] not in known]
        if probe.value["builds"]:
            text = f"{version}, builds plans here"
            if foreign:
                text += f", but for no GPU of compute capability {', '.join(foreign)}"
            yield Finding(title, "warning" if foreign else "ok", text + ("" if gpus else "; runs none: no GPU"))
        elif gpus:
            yield Finding(
                title, "problem", f"{version} loads, but its builder does not start", "update the driver"
            )
        else:
            yield Finding(title, "absent", f"{version} loads; it builds and runs plans on a GPU alone")
    too_new = _too_new(facts, facts.cuda_bindings)
    if too_new is not None:
        known = release(facts.driver.value["cuda"])[0]
        yield Finding(
            "cuda-bindings",
            "problem",
            f"{facts.cuda_bindings}: {too_new}",
            f'pip install "cuda-bindings=={known}.*"',
        )


def _resources(found: Resources) -> Iterator[Finding]:
    yield _memory(found)
    cores = f"{found.cores} threads"
    if found.container_cores is not None and found.container_cores < found.cores:
        text = f"{cores}, but the container has the time of {found.container_cores:.3g}"
        hint = f"{max(1, int(found.container_cores))} are used by default; give the container more for more speed"
        yield Finding("processor", "warning", text, hint)
    else:
        yield Finding("processor", "ok", cores)
    if found.shared_bytes is not None:
        text = f"{found.shared_bytes / GIB:.2f} GiB of shared memory (/dev/shm)"
        small = found.shared_bytes < SMALL_SHARED_BYTES
        hint = "start the container with --shm-size=8g or --ipc=host, or train with --set data.workers=0"
        yield Finding("/dev/shm", "warning" if small else "ok", text, hint if small else None)
    text = f"{found.disk_free_bytes / GIB:.1f} GiB free in {found.folder}"
    if not found.writable:
        yield Finding("disk", "warning", f"{found.folder} cannot be written to", "give --out another folder")
    elif found.disk_free_bytes < SMALL_DISK_BYTES:
        hint = "a run of ResNet-50 keeps about 1 GiB of checkpoints: make room, or give --out another disk"
        yield Finding("disk", "warning", text, hint)
    else:
        yield Finding("disk", "ok", text)
    if found.open_files is not None and 0 <= found.open_files < FEW_OPEN_FILES:
        yield Finding("open files", "warning", f"at most {found.open_files}", "ulimit -n 4096")
    elif found.open_files is not None:
        yield Finding("open files", "ok", f"at most {found.open_files}" if found.open_files >= 0 else "no limit")


def _bytecode(uncompiled: str | None) -> Finding:
    if uncompiled is None:
        return Finding("bytecode", "ok", "kept")
    text = f"not kept: {uncompiled}, so each command compiles its packages anew, 2 s for torch"
    remedy = f"{sys.executable} -m compileall -q {sysconfig.get_path('purelib')}"
    if uncompiled.endswith("cannot be written to"):
        remedy = "PYTHONPYCACHEPREFIX=DIR keeps it in a folder of yours"
    return Finding("bytecode", "warning", text, remedy)


def _memory(found: Resources) -> Finding:
    if found.memory_bytes is None or found.available_bytes is None:
        return Finding("memory", "ok", "not told by this system")
    text = f"{found.memory_bytes / GIB:.1f} GiB, of which {found.available_bytes / GIB:.1f} can be taken"
    if found.container_bytes is not None and found.container_bytes < found.memory_bytes:
        text += f"; the container is stopped at {found.container_bytes / GIB:.1f}"
    small = min(found.memory_bytes, found.container_bytes or found.memory_bytes) < SMALL_MEMORY_BYTES
    hint = "smaller batches, --set model.output_stride=16, or --set optim.accumulation=N need less"
    return Finding("memory", "warning" if small else "ok", text, hint if small else None)
