"""`gmtool data import`: read the files of a labeling tool into a data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gmtool.cli.options import AsJson, groups
from gmtool.errors import UsageError, did_you_mean

EPILOG = groups(
    {
        "source": "--from --images",
        "labels": "--classes --unlabeled-is --empty-is",
        "parts": "--val --group",
        "output": "--out --copy --json",
    }
)


def import_(
    source: Annotated[Path, typer.Argument(help="Folder, file or archive that the tool exported.")],
    out: Annotated[Path, typer.Option(help="Folder of the data set: new, empty, or of an earlier import.")],
    from_: Annotated[
        str | None, typer.Option("--from", metavar="TOOL", help="Tool that wrote the files. [recognised]")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, if they are elsewhere.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="File of the classes in their order; other labels are ignored. [those of the source]"),
    ] = None,
    unlabeled_is: Annotated[
        Literal["background", "ignore"] | None,
        typer.Option(help="Ground without a label. [background, where that is clear]"),
    ] = None,
    empty_is: Annotated[
        Literal["unlabeled", "background"],
        typer.Option(help="Images without any label: not labeled yet, or nothing is on them."),
    ] = "unlabeled",
    val: Annotated[
        float,
        typer.Option(min=0.0, max=0.9, help="Share of labeled images for validation, if the source has none."),
    ] = 0.2,
    group: Annotated[
        str | None, typer.Option(help="Regular expression on names; images that match alike stay in one part.")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images instead of linking them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read the labels of a tool into a data set: labelme, CVAT, Label Studio, COCO, YOLO, Roboflow, Datumaro, ...

    --out gets images/, masks/, classes.json and labeled.txt, as gmtool train takes them, and import_report.json
    with what was left out and why. A second import adds and updates; what was changed by hand is kept.
    """
    from gmtool.console import remark, result
    from gmtool.escaping import printable
    from gmtool.labels.dataset.importing import import_labels
    from gmtool.labels.dataset.job import ImportOptions
    from gmtool.labels.recognize import TOOL_NAMES

    tool = next((name for name in TOOL_NAMES if name == from_), None)
    if from_ is not None and tool is None:
        raise UsageError(f"--from {from_}: unknown tool{did_you_mean(from_, TOOL_NAMES)}")
    options = ImportOptions(tool, images, classes, unlabeled_is, empty_is, val, group, copy)
    report = import_labels(source, out, options, progress=_track)
    if as_json:
        result(json.dumps(report.to_dict(), indent=1))
    else:
        for line in report.lines():
            result(printable(line))
    if not sum(report.labeled.values()):
        remark("no image has labels that can be used")
        raise typer.Exit(1)
    remark("next:")
    remark(f"  gmtool data check folder --data {out} --labels {out / 'labeled.txt'}")
    remark(f"  gmtool train {out}")


def _track(items: Iterable[Any], total: int) -> Iterator[Any]:
    from gmtool.progress import track

    return track(items, total=total)
