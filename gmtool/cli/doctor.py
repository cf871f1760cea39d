"""`gmtool doctor`: list which devices and packages work, and how to fix those that do not."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from gmtool.cli.options import AsJson

if TYPE_CHECKING:
    from gmtool.doctor.diagnosis import Finding

STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "problem": "bold red"}


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do: packages, GPU, runtimes that really load, memory, disk.

    Whatever could hang or crash is tried in a process of its own. What is absent is no failure; the exit
    code is 1 only if something that is installed is broken.
    """
    from gmtool.console import remark, result
    from gmtool.doctor.diagnosis import diagnose
    from gmtool.doctor.facts import collect_facts, find_program

    remark("looking at this machine: some seconds")
    facts = collect_facts()
    findings = [find_program(), *diagnose(facts)]
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
