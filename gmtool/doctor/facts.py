"""Collect facts on a machine; probes run side by side, each in a process of its own."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from packaging.requirements import Requirement

from gmtool import __version__
from gmtool.artifact.tensorrt_plan import FLAVOUR_TITLES
from gmtool.doctor.diagnosis import NOT_NEEDED, Extra, Facts, Finding
from gmtool.doctor.probes import ORT, Probe, run_probe
from gmtool.resources import read_resources


def collect_facts() -> Facts:
    """Return everything that `diagnose` judges."""

    def probe(name: str) -> Probe | None:
        return run_probe(name) if find_spec(name) is not None else None

    with ThreadPoolExecutor() as pool:
        driver = pool.submit(run_probe, "driver")
        torch = pool.submit(probe, "torch")
        tensorrt = {flavour: pool.submit(probe, flavour) for flavour in FLAVOUR_TITLES}
        onnxruntime = probe("onnxruntime")
        providers = _try_providers(onnxruntime, pool)
        return Facts(
            extras=read_extras(),
            torch=torch.result(),
            driver=driver.result(),
            onnxruntime=onnxruntime,
            onnxruntime_packages=_packages_with("onnxruntime"),
            providers=providers,
            tensorrt={flavour: future.result() for flavour, future in tensorrt.items()},
            cuda_bindings=_version("cuda-bindings"),
            resources=read_resources(Path.cwd()),
            uncompiled=find_uncompiled(),
        )


def read_extras() -> dict[str, Extra]:
    """Return what of each extra is installed, as the package's own metadata defines it."""
    requirements = [Requirement(text) for text in metadata.requires("gmtool") or []]
    extras = {}
    for name in metadata.metadata("gmtool").get_all("Provides-Extra") or []:
        if name == "all":
            continue
        wanted = [one for one in requirements if one.marker and one.marker.evaluate({"extra": name})]
        wanted += [needed for one in wanted for needed in _of_extras(one)]
        missing = [one.name for one in wanted if _version(one.name) is None]
        outdated = [
            f"{one.name} {version}, expected {one.specifier}"
            for one in wanted
            if (version := _version(one.name)) and not one.specifier.contains(version, prereleases=True)
        ]
        extras[name] = Extra(tuple(missing), tuple(outdated), empty=not wanted)
    return extras


def _of_extras(requirement: Requirement) -> list[Requirement]:
    """Return what the extras of a requirement need, such as those of `onnxruntime-gpu[cuda,cudnn]`."""
    try:
        named = [Requirement(text) for text in metadata.requires(requirement.name) or []]
    except metadata.PackageNotFoundError:
        return []
    return [
        one
        for one in named
        if one.marker and any(one.marker.evaluate({"extra": extra}) for extra in requirement.extras)
    ]


def _try_providers(onnxruntime: Probe | None, pool: ThreadPoolExecutor) -> dict[str, Probe]:
    names = onnxruntime.value.get("providers", []) if onnxruntime is not None else []
    wanted = sorted(name for name in names if name not in NOT_NEEDED)
    return dict(zip(wanted, pool.map(run_probe, [ORT + name for name in wanted]), strict=True))


def _packages_with(module: str) -> tuple[str, ...]:
    return tuple(sorted(set(metadata.packages_distributions().get(module, ()))))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_uncompiled(packages: Sequence[str] = ("torch", "onnxruntime", "numpy")) -> str | None:
    """Return why each process compiles packages anew; None if bytecode of the first installed one is kept."""
    spec = next(filter(None, map(find_spec, packages)), None)
    if spec is None or spec.origin is None or Path(cache_from_source(spec.origin)).exists():
        return None
    if sys.dont_write_bytecode:
        return "PYTHONDONTWRITEBYTECODE is set"
    folder = Path(spec.origin).parent
    return None if os.access(folder, os.W_OK) or sys.pycache_prefix else f"{folder} cannot be written to"


def find_program() -> Finding:
    """Return the versions of gmtool, Python and the system."""
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return Finding("gmtool", "ok", f"{__version__}, {python}")
