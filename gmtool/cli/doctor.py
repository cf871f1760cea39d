"""`gmtool doctor`: list which devices and packages work, and how to fix those that do not."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmtool.cli.options import AsJson

if TYPE_CHECKING:
    from gmtool.doctor.deep.result import DeepFinding
    from gmtool.doctor.diagnosis import Finding

STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "problem": "bold red"}
DEEP_STYLES = {"ok": "green", "failed": "bold red", "left out": "dim"}


def doctor(
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Also train, export and predict on toy data with every device: one to three minutes."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what this machine can do: packages, GPU, runtimes that really load, memory, disk.

    Whatever could hang or crash is tried in a process of its own. What is absent is no failure; the exit
    code is 1 only if something that is installed is broken, or a check of --deep fails.
    """
    from gmtool.console import remark, result
    from gmtool.doctor.diagnosis import diagnose
    from gmtool.doctor.facts import collect_facts, find_program

    remark("looking at this machine: some seconds")
    facts = collect_facts()
    findings = [find_program(), *diagnose(facts)]
    if not as_json:
        _show(findings)
    checks = _check_deeply(shown=not as_json) if deep else []
    if as_json:
        resources = asdict(facts.resources) | {"folder": str(facts.resources.folder)}
        value: dict[str, Any] = {
            "findings": [asdict(finding) for finding in findings],
            "gpus": facts.driver.value.get("gpus", []),
            "resources": resources,
        }
        if deep:
            value["deep"] = [asdict(check) for check in checks]
        result(json.dumps(value, indent=1))
    broken = any(finding.state == "problem" for finding in findings)
    if broken or any(check.state == "failed" for check in checks):
        raise typer.Exit(1)


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


def _check_deeply(*, shown: bool) -> list[DeepFinding]:
    """Run the deep checks, and show each as soon as it is done: on stdout, or as a remark beside JSON."""
    from gmtool.console import remark
    from gmtool.doctor.deep.run import CHECKS, run_checks
    from gmtool.resources import temporary_dir

    remark(f"{len(CHECKS)} checks with toy data, each in a process of its own: one to three minutes")
    found, started = [], time.monotonic()
    with temporary_dir() as folder:
        for check in run_checks(folder):
            found.append(check)
            if shown:
                _show_check(check)
            else:
                remark(f"{len(found)}/{len(CHECKS)} {check.check}: {check.state}")
    if shown:
        _show_end(found, time.monotonic() - started)
    return found


def _show_check(check: DeepFinding) -> None:
    from rich.markup import escape
    from rich.table import Table

    from gmtool.console import stdout

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), expand=True)
    for width in (8, 27):
        table.add_column(no_wrap=True, width=width)
    table.add_column(overflow="fold", ratio=1)
    table.add_column(no_wrap=True, justify="right", width=7)
    left_out = f"\n[dim]left out: {escape(check.left_out)}[/]" if check.left_out else ""
    state = f"[{DEEP_STYLES[check.state]}]{check.state}[/]"
    table.add_row(state, check.check, escape(check.text) + left_out, f"{check.seconds:.1f} s")
    stdout().print(table)


def _show_end(checks: Sequence[DeepFinding], seconds: float) -> None:
    from gmtool.console import remark, result

    for check in checks:
        if check.state == "failed":
            remark(f"{check.check} failed; the last lines of its process:")
            for line in check.log:
                remark(f"  {line}")
    counts = Counter(check.state for check in checks)
    without = sum(check.left_out is not None for check in checks)
    parts = f", {without} of them in part" if without else ""
    result(f"{counts['ok']} ok{parts}, {counts['failed']} failed, {counts['left out']} left out; {seconds:.0f} s")
