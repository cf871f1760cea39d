"""`gmtool data check`, `split` and `toy`: look at a data set, choose its labeled images, make a toy one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmtool.cli.options import AsJson, Classes, Data, Kind, Labels, Set, Unlabeled, Val
from gmtool.errors import UsageError

if TYPE_CHECKING:
    from gmtool.config import TrainConfig
    from gmtool.data.check import DataReport

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Import, check, split or make a data set.")


@app.command()
def check(
    kind: Kind,
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
    from gmtool.console import result
    from gmtool.data.check import check_data
    from gmtool.data.datasets import load_training_data

    lists = {"data.labeled": labels, "data.unlabeled": unlabeled, "data.val": val}
    config = _configure(kind, data, classes, lists, set_)
    class_set = load_classes(config.data.classes)
    report = check_data(load_training_data(config.data), class_set, config.data, progress=_track)
    if as_json:
        result(json.dumps(report.to_dict(), indent=1))
    else:
        _show(report)
    if report.num_errors:
        raise typer.Exit(1)


@app.command()
def split(
    kind: Kind,
    out: Annotated[Path, typer.Option(help="Folder for labeled.txt, unlabeled.txt and split.json.")],
    data: Data = None,
    classes: Classes = None,
    count: Annotated[int | None, typer.Option(min=1, help="Number of labeled images.")] = None,
    fraction: Annotated[str | None, typer.Option(help="Share of labeled images: 1/8 or 0.125.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random order.")] = 0,
    group: Annotated[
        str | None, typer.Option(help="Regular expression on the id; images that match alike stay together.")
    ] = None,
    set_: Set = None,
) -> None:
    """Choose the labeled images of the training set: seeded, with every class where possible.

    Every training image must have a mask, since the classes are looked up there.
    """
    from gmtool.artifact.runs import require_empty
    from gmtool.classes import load_classes
    from gmtool.console import remark, result
    from gmtool.data.splitting import choose_labeled, training_candidates, write_choice

    require_empty(out)
    config = _configure(kind, data, classes, {}, set_)
    class_set = load_classes(config.data.classes)
    candidates = training_candidates(config.data, class_set)
    chosen = choose_labeled(candidates, _wanted(count, fraction, len(candidates)), seed=seed, group_pattern=group)
    missing = write_choice(chosen, out, seed=seed, group=group, classes=class_set)
    if missing:
        remark(f"warning: in no labeled image: {', '.join(missing)}: raise --count")
    result(f"{len(chosen.labeled)} labeled and {len(chosen.unlabeled)} unlabeled images in {out}")
    remark("next:")
    remark(f"  gmtool train {kind} --data {config.data.root} --labels {out / 'labeled.txt'}")


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


def _configure(
    kind: str, data: Path | None, classes: str | None, lists: dict[str, Any], assignments: list[str] | None
) -> TrainConfig:
    from gmtool_training.recipes.configure import configure

    flags = {"data.root": data, "data.classes": classes, **lists}
    return configure(kind, flags, settings=assignments or [])


def _wanted(count: int | None, fraction: str | None, total: int) -> int:
    from fractions import Fraction

    if (count is None) == (fraction is None):
        raise UsageError("give the number of labeled images with --count, or their share with --fraction")
    if count is not None:
        return count
    assert fraction is not None
    try:
        share = Fraction(fraction)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"--fraction {fraction}: expected a share such as 1/8 or 0.125") from error
    return round(total * share)


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
