"""`gmtool info`: what a model, a checkpoint or a report says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.cli.options import AsJson

if TYPE_CHECKING:
    from rich.table import Table

    from gmtool.artifact.describe import Description
    from gmtool.classes import ClassSet


def info(
    file: Annotated[
        Path,
        typer.Argument(
            help="ONNX model, TensorRT plan, run folder, checkpoint, report.json, export.json or classes.json."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Print what a file that gmtool wrote says about itself, once its hash is checked.

    Neither torch, nor a runtime, nor a GPU is needed. A file that is damaged, changed or foreign is one line
    and exit code 1.
    """
    from gmtool.artifact.describe import describe

    description = describe(file)
    if as_json:
        from gmtool.console import result

        value = {"kind": description.kind, "path": str(description.path), **description.value}
        result(json.dumps(value, indent=1))
    else:
        _show(description)


def _show(description: Description) -> None:
    from rich.table import Table

    from gmtool.artifact.describe import TITLES
    from gmtool.console import cell, result, stdout

    result(f"{TITLES[description.kind]} {description.path}")
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="bold")
    facts.add_column(overflow="fold")
    for name, text in description.facts.items():
        facts.add_row(cell(name), cell(text))
    stdout().print(facts)
    if description.classes is not None:
        stdout().print(_classes_table(description.classes))


def _classes_table(classes: ClassSet) -> Table:
    """Return the classes with their colours; off a terminal the colours are words alone."""
    from rich.table import Table
    from rich.text import Text

    from gmtool.console import cell

    raw = classes.raw_ids != tuple(range(len(classes)))
    table = Table("index", *(["raw id"] if raw else []), "", "color", "class", title_justify="left")
    for index, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        red, green, blue = color
        swatch = Text("    ", style=f"on rgb({red},{green},{blue})")
        background = " (background)" if index == classes.background and name != "background" else ""
        ids = [str(classes.raw_ids[index])] if raw else []
        table.add_row(str(index), *ids, swatch, f"#{red:02x}{green:02x}{blue:02x}", cell(name + background))
    table.add_row(str(classes.ignore_index), *([""] if raw else []), "", "", "ignored")
    return table
