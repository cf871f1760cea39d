"""`gmtool submit check`: whether a benchmark would take the masks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gmtool.errors import needs_extra
from gmtool.escaping import printable

if TYPE_CHECKING:
    from gmtool_serving.submission.check import SubmissionReport
    from gmtool_serving.submission.files import SubmittedFile

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Check masks before they are handed in.")


@app.callback()
def _group() -> None:
    """Keep `check` a command of its own while it is the only one."""


@app.command()
def check(
    benchmark: Annotated[Literal["voc", "cityscapes"], typer.Argument(help="Whose rules.")],
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of masks, or a tar or zip archive.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images, for names and sizes, or of the ground truth."),
    ] = None,
    list_: Annotated[
        Path | None, typer.Option("--list", help="List of the images to hand in; default: all in --images.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Problems to print; all are counted.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, with all problems.")] = False,
) -> None:
    """Check names, number, size, mode and labels as the official script does. Exit code 1 if it would refuse.

    voc: ID.png right in the folder, or in results/VOC2012/Segmentation/comp6_test_cls; labels 0-20.
    cityscapes: one CITY_SEQUENCE_FRAME*.png an image, in any folder; label ids 0-33.
    """
    from gmtool.console import remark, result

    with needs_extra("serve", "checking masks"):
        from gmtool_serving.submission.check import check_submission
    report = check_submission(benchmark, source, images=images, list_path=list_, progress=_progress)
    if as_json:
        result(json.dumps(report.to_dict(), indent=1))
    else:
        result(_text(report, show))
    if report.expected is None:
        remark("only the masks that are there were looked at: --images DIR or --list FILE says which must be")
    elif not report.compared_sizes:
        remark("masks were not compared with their images: --images DIR does that")
    if report.surplus:
        remark(f"{report.surplus} other PNG files were not looked at, as the official script does not")
    if report.problems:
        raise typer.Exit(1)


def _text(report: SubmissionReport, show: int) -> str:
    wanted = "" if report.expected is None else f" for {report.expected} images"
    looked_at = f"{report.masks} masks{wanted} in {report.source}"
    if not report.problems:
        return printable(f"acceptable: {looked_at}")
    counts = ", ".join(f"{count} {kind}" for kind, count in report.to_dict()["counts"].items())
    lines = [f"not acceptable: {looked_at}: {counts}"]
    lines += [f"{problem.kind:<11}{problem.file}: {problem.message}" for problem in report.problems[:show]]
    left_out = len(report.problems) - show
    if left_out > 0:
        lines.append(f"and {left_out} more (--show {len(report.problems)} or --json)")
    return "\n".join(map(printable, lines))


def _progress(files: Sequence[SubmittedFile]) -> Iterable[SubmittedFile]:
    from gmtool.progress import track

    return track(files, total=len(files))
