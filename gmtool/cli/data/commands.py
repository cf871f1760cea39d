"""`gmtool data check` and `toy`: look at a data set, make a toy one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmtool.cli.data.configured import configured
from gmtool.cli.options import AsJson, Classes, Data, Kind, Labels, Set, Unlabeled, Val

if TYPE_CHECKING:
    from gmtool.data.check import DataReport

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Import, check, split or make a data set.")


@app.command()
def check(
    kind: Kind = None,
    data: Data = None,
    classes: Classes = None,
    labels: Labels = None,
    unlabeled: Unlabeled = None,
    val: Val = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Decode every image and mask and say what is wrong. Exit code 1 if there are errors.

    Errors: unusable files, labels out of range, masks of another size, training images in validation, masks of
    one class and ignored pixels alone. Warnings: classes in no labeled or no validation image, many ignored
    pixels, masks as JPEG, palettes in different orders, EXIF orientations that sizes do not show, dark 16-bit
    images, images smaller than the crop, duplicates. --json names all files of each.
    """
    from gmtool.classes import load_classes
    from gmtool.console import remark, result
    from gmtool.data.check import check_data
    from gmtool.data.datasets import load_training_data

    lists = {"data.labeled": labels, "data.unlabeled": unlabeled, "data.val": val}
    _, config = configured(kind, data, classes, lists, set_, command="check")
    class_set = load_classes(config.data.classes)
    found = load_training_data(config.data)
    remark(f"labeled: {found.labeled.name}; unlabeled: {found.unlabeled.name}; validation: {found.val.name}")
    report = check_data(found, class_set, config.data, progress=_track)
    if as_json:
        result(json.dumps(report.to_dict(), indent=1))
    else:
        _show(report)
    if report.num_errors:
        raise typer.Exit(1)


@app.command()
def toy(
    out: Annotated[Path, typer.Argument(help="Folder for the data set.")],
    labeled: Annotated[int, typer.Option(min=1, help="Labeled images.")] = 24,
    unlabeled: Annotated[int, typer.Option(min=1, help="Unlabeled images.")] = 136,
    val: Annotated[int, typer.Option(min=1, help="Validation images.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of every random draw.")] = 0,
) -> None:
    """Generate textured shapes on textured ground, in VOC layout."""
    from gmtool.console import result
    from gmtool.data.toy import ToyConfig, generate_toy

    generate_toy(out, ToyConfig(labeled=labeled, unlabeled=unlabeled, val=val, seed=seed))
    result(f"{labeled} labeled, {unlabeled} unlabeled and {val} validation images in {out}")


def _track(looks: Iterable[Any], total: int) -> Iterator[Any]:
    from gmtool.progress import track

    return track(looks, total=total)


def _show(report: DataReport) -> None:
    from rich.table import Table

    from gmtool.console import cell, result, stdout
    from gmtool.escaping import printable

    table = Table(title=", ".join(f"{count} {part}" for part, count in report.counts.items()))
    table.add_column("class")
    for title in ("labeled images", "labeled pixels %", "validation images", "validation pixels %"):
        table.add_column(title, justify="right")
    parts = (report.labeled, report.val)
    for index, name in enumerate(report.classes.names):
        cells = ((part.images[index], part.pixels[index] / max(1, part.pixels.sum())) for part in parts)
        table.add_row(
            cell(name), *(text for images, share in cells for text in (str(images), f"{100 * share:.2f}"))
        )
    table.add_row(
        "(ignored, of all)", *(text for part in parts for text in ("", f"{100 * part.ignored_share:.2f}"))
    )
    stdout().print(table)
    for finding in report.findings:
        result(printable(f"{finding.severity}: {finding.message}"))
    warnings = len(report.findings) - report.num_errors
    result(f"{report.num_errors} errors, {warnings} warnings")
