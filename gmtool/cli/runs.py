"""`gmtool runs`: training runs below a folder as a table, and runs compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.cli.options import AsJson
from gmtool.errors import CheckpointError, GmtoolError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from gmtool.report.runs import RunRow

WIDEST = 1000
"""Columns of a table that is written into a file or a pipe."""


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER] | RUN RUN...", help="Folder of runs, or two or more runs. [runs/]"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG of the curves of compared runs. [comparison.png beside the first run]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List training runs: recipe, data, labels, score, time. Of two or more runs, compare settings and curves."""
    from gmtool.artifact.runs import RUNS_DIR
    from gmtool.report.runs import find_runs, read_run

    named = folders or [RUNS_DIR]
    if len(named) == 1:
        if picture is not None:
            raise UsageError("--picture compares runs: name two or more")
        rows = _readable(find_runs(named[0]))
        if not rows:
            raise CheckpointError(f"no run in {named[0]}: train one with gmtool train")
        _show(rows, below=named[0], as_json=as_json)
        return
    _compare([read_run(path) for path in named], picture, as_json=as_json)


def _readable(paths: list[Path]) -> list[RunRow]:
    """Return the runs that can be read; the others are named."""
    from gmtool.console import remark
    from gmtool.report.runs import read_run

    rows = []
    for path in paths:
        try:
            rows.append(read_run(path))
        except GmtoolError as error:
            remark(f"warning: {error}")
    return rows


def _show(rows: list[RunRow], *, below: Path, as_json: bool) -> None:
    from gmtool.console import result

    if as_json:
        result(json.dumps([row.to_dict() for row in rows], indent=1))
    else:
        _print(_table(rows, below))


def _print(table: Table) -> None:
    """Print a table: on a terminal it is folded to fit; a file gets a line a row."""
    from rich.console import Console

    from gmtool.console import stdout

    console = stdout() if stdout().is_terminal else Console(width=WIDEST, highlight=False)
    console.print(table)


def _table(rows: list[RunRow], below: Path) -> Table:
    from rich.table import Table

    from gmtool.console import cell
    from gmtool.progress import clock
    from gmtool.report.report import percent

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("recipe", "data"):
        table.add_column(name, overflow="fold")
    for name in ("labeled", "unlabeled", "iteration", "last %", "best %", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        path = row.path.relative_to(below) if row.path != below and row.path.is_relative_to(below) else row.path
        left = "not fitted" if row.iterations is None else f"{row.iteration}/{row.iterations}"
        done = str(row.iteration) if row.is_finished else left
        texts = (str(path), row.recipe, row.data, _number(row.labeled), _number(row.unlabeled), done)
        scores = (percent(row.last), percent(row.best), clock(row.seconds))
        table.add_row(*map(cell, texts + scores))
    return table


def _compare(rows: list[RunRow], picture: Path | None, *, as_json: bool) -> None:
    """Print the settings in which runs differ, and draw their curves."""
    from rich.table import Table

    from gmtool.artifact.run_config import load_run_config
    from gmtool.artifact.run_record import read_events
    from gmtool.console import cell, remark, result
    from gmtool.files import write_atomically
    from gmtool.report.runs import different_settings, draw_runs

    first = load_run_config(rows[0].path)
    differences = {str(row.path): different_settings(first, load_run_config(row.path)) for row in rows[1:]}
    path = picture or rows[0].path.parent / "comparison.png"
    write_atomically(path, draw_runs([(row.path.name, read_events(row.path)) for row in rows]))
    if as_json:
        compared = {
            name: {key: [json.loads(ours), json.loads(theirs)] for key, ours, theirs in changed}
            for name, changed in differences.items()
        }
        value = {"runs": [row.to_dict() for row in rows], "differences": compared, "picture": str(path)}
        result(json.dumps(value, indent=1))
        return
    _print(_table(rows, rows[0].path.parent))
    for row in rows[1:]:
        table = Table("setting", rows[0].path.name, row.path.name, box=None, header_style="bold", pad_edge=False)
        for texts in differences[str(row.path)]:
            table.add_row(*map(cell, texts))
        result("")
        if table.row_count:
            _print(table)
        else:
            result(f"{row.path.name} has the settings of {rows[0].path.name}")
    remark(f"curves: {path}")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
