"""`gmtool doctor`: what this machine can do, what is missing, what is broken, and what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gmtool.cli.diagnosis import Extra, Facts, Finding
    from gmtool.cli.probes import Probe

STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "problem": "bold red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Say what this machine can do: packages, GPU, runtimes that really load, memory, disk.

    Whatever could hang or crash is tried in a process of its own. What is absent is no failure; the exit
    code is 1 only if something that is installed is broken.
    """
    from gmtool.cli.diagnosis import diagnose
    from gmtool.console import remark, result

    remark("looking at this machine: some seconds")
    facts = collect_facts()
    findings = [_program(), *diagnose(facts)]
    if as_json:
        resources = asdict(facts.resources) | {"folder": str(facts.resources.folder)}
        value = {
            "findings": [asdict(finding) for finding in findings],
            "gpus": facts.driver.value.get("gpus", []),
            "resources": resources,
        }
        result(json.dumps(value, indent=1))
    else:
        _show(findings)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def collect_facts() -> Facts:
    """Look at everything; probes run side by side, each in a process of its own."""
    from gmtool.artifact.tensorrt_plan import FLAVOUR_TITLES
    from gmtool.cli.diagnosis import Facts
    from gmtool.cli.probes import run_probe
    from gmtool.resources import read_resources

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
        )


def read_extras() -> dict[str, Extra]:
    """Return what of each extra is installed, as the package's own metadata defines it."""
    from importlib import metadata

    from packaging.requirements import Requirement

    from gmtool.cli.diagnosis import Extra

    requirements = [Requirement(text) for text in metadata.requires("gmtool") or []]
    extras = {}
    for name in metadata.metadata("gmtool").get_all("Provides-Extra") or []:
        if name == "all":
            continue
        wanted = [one for one in requirements if one.marker and one.marker.evaluate({"extra": name})]
        missing = [one.name for one in wanted if _version(one.name) is None]
        outdated = [
            f"{one.name} {version}, expected {one.specifier}"
            for one in wanted
            if (version := _version(one.name)) and not one.specifier.contains(version, prereleases=True)
        ]
        extras[name] = Extra(tuple(missing), tuple(outdated), empty=not wanted)
    return extras


def _try_providers(onnxruntime: Probe | None, pool: ThreadPoolExecutor) -> dict[str, Probe]:
    from gmtool.cli.diagnosis import NOT_NEEDED
    from gmtool.cli.probes import ORT, run_probe

    names = onnxruntime.value.get("providers", []) if onnxruntime is not None else []
    wanted = sorted(name for name in names if name not in NOT_NEEDED)
    return dict(zip(wanted, pool.map(run_probe, [ORT + name for name in wanted]), strict=True))


def _packages_with(module: str) -> tuple[str, ...]:
    from importlib import metadata

    return tuple(sorted(set(metadata.packages_distributions().get(module, ()))))


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _program() -> Finding:
    import platform

    from gmtool import __version__
    from gmtool.cli.diagnosis import Finding

    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return Finding("gmtool", "ok", f"{__version__}, {python}")


def _show(findings: list[Finding]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from gmtool.console import result, stdout

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        style = STYLES[finding.state]
        remedy = f"\n[cyan]{escape(finding.remedy)}[/]" if finding.remedy else ""
        table.add_row(f"[{style}]{finding.state}[/]", finding.part, escape(finding.text) + remedy)
    stdout().print(table)
    counts = Counter(finding.state for finding in findings)
    problems, warnings = counts["problem"], counts["warning"]
    result(f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}")
