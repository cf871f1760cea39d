"""`gmtool evaluate`: scores of a model or of a folder of masks, with intervals, and compared with others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.api import evaluation
from gmtool.cli.options import AsJson, Device, MaskEncoding, Model, Set, Threads, Trust, groups
from gmtool.config import LayoutName, MaskValues
from gmtool.errors import UsageError, needs_extra

if TYPE_CHECKING:
    from gmtool.report.comparison import Comparison
    from gmtool.report.report import IoUReport

WHOLE = "1.0"
EPILOG = groups(
    {
        "model": "--model --device --threads --trust",
        "data": "--data --layout --list --mask-dir --mask-values --set",
        "averaging": "--sliding --stride --scales --flip",
        "folders": "--images --ground-truth",
        "masks": "--predictions --ground-truth --classes --images --prediction-values",
        "report": "--out --json --boundary --official-json --report --against",
    }
)


def evaluate(
    model: Model = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set; default: that of the model's run.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Score these masks instead of a model: a folder of PNG or npz, or COCO results (.json)."
        ),
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(help="Masks of --images, or to score --predictions against; or give --data.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, .json and .md, classes.csv, images.csv, comparison.*."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Compare with this saved report.json, or the folder of one; may be repeated."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Take this saved report.json, or the folder of one, instead of scoring.")
    ] = None,
    layout: Annotated[
        LayoutName | None,
        typer.Option(help="Layout of --data; default: that of the model's run."),
    ] = None,
    list_: Annotated[
        Path | None, typer.Option("--list", help="List of the images to score; default: the validation set.")
    ] = None,
    mask_dir: Annotated[str | None, typer.Option(help="Folder of the masks in layout voc.")] = None,
    mask_values: MaskEncoding = None,
    set_: Set = None,
    sliding: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Average logits of sliding windows of this size; needs logits."),
    ] = None,
    stride: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Step of the windows; default: two thirds of their size."),
    ] = None,
    scales: Annotated[
        str, typer.Option(help="Average logits of these sizes, such as 0.5,0.75,1.0,1.25,1.5; needs logits.")
    ] = WHOLE,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirror image; needs logits.")] = False,
    classes: Annotated[
        str | None, typer.Option(help="Classes of --predictions: voc, cityscapes, context, or a classes.json.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Images of --ground-truth: what the model sees, or for the report."),
    ] = None,
    prediction_values: Annotated[
        MaskValues | None, typer.Option(help="As --mask-values, of --predictions. [recognised]")
    ] = None,
    boundary: Annotated[
        bool, typer.Option("--boundary", help="Boundary IoU too: how well contours agree.")
    ] = False,
    official_json: Annotated[
        Path | None, typer.Option(help="File for the score in the keys of cityscapesScripts.")
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Score a model on a data set, or masks against masks; compare with earlier scores.

    By default a model sees whole images at their own size, one scale, no flip. Ignored pixels are not counted;
    classes that occur nowhere are left out of the mean. Exit code 3 if some images could not be scored.
    """
    from gmtool.console import remark
    from gmtool.report.comparison import compare
    from gmtool.report.report import load_report

    others = [load_report(path) for path in against or []]  # before the work: a damaged one would waste it
    if report is None:
        scored = evaluation.evaluate(
            model,
            data=data,
            layout=layout,
            list_path=list_,
            sliding=sliding,
            stride=stride,
            scales=scales,
            flip=flip,
            predictions=predictions,
            ground_truth=ground_truth,
            classes=classes,
            images=images,
            mask_dir=mask_dir,
            mask_values=mask_values,
            prediction_values=prediction_values,
            settings=set_ or [],
            boundary=boundary,
            out=out,
            official_json=official_json,
            device=device,
            threads=threads,
            trust=trust,
            progress=show_progress,
        )
    else:
        anew = {
            "--model": model,
            "--list": list_,
            "--boundary": boundary,
            "--data": data,
            "--layout": layout,
            "--set": set_,
            "--predictions": predictions,
            "--ground-truth": ground_truth,
            "--prediction-values": prediction_values,
            "--classes": classes,
            "--images": images,
            "--mask-dir": mask_dir,
            "--mask-values": mask_values,
            "--sliding": sliding,
            "--stride": stride,
            "--flip": flip,
            "--scales": scales != WHOLE,
            "--device": device != "auto",
            "--threads": threads,
            "--trust": trust,
        }
        for option, value in anew.items():
            if value:
                raise UsageError(f"{option} scores anew, --report takes a saved score: take one of them")
        scored = load_report(report)
        _write(scored, out, official_json)
    if out is not None:
        remark(f"report: {out / 'report.html'}")
    if official_json is not None:
        remark(f"in the keys of cityscapesScripts: {official_json}")
    comparison = compare(scored, others) if others else None
    if comparison is not None and out is not None:
        from gmtool_serving.scoring.report_files import write_comparison

        remark(f"comparison: {write_comparison(comparison, out)}")
    _print(scored, comparison, as_json=as_json)
    if scored.failed:
        raise typer.Exit(3)


def show_progress(ids: Iterable[str]) -> Iterator[str]:
    """Pass ids on; show progress on a terminal."""
    from gmtool.progress import track

    listed = list(ids)
    return track(listed, total=len(listed))


def _write(report: IoUReport, out: Path | None, official_json: Path | None) -> None:
    """Write the files of a saved report; there are no predictions for pictures."""
    from gmtool.files import write_atomically
    from gmtool.report.cityscapes_json import official_dict
    from gmtool.report.report import format_json

    if out is not None:
        with needs_extra("serve", "evaluating"):
            from gmtool_serving.scoring.report_files import write_report
        write_report(report, None, out)
    if official_json is not None:
        write_atomically(official_json, format_json(official_dict(report)) + "\n")


def _print(report: IoUReport, comparison: Comparison | None, *, as_json: bool) -> None:
    from gmtool.console import result
    from gmtool.report.comparison import comparison_markdown
    from gmtool.report.report import format_json
    from gmtool.report.tables import to_markdown

    if as_json:
        both = {} if comparison is None else {"comparison": comparison.to_dict()}
        result(format_json(report.to_dict() | both))
        return
    result(to_markdown(report))
    if comparison is not None:
        result(comparison_markdown(comparison))
