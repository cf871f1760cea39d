"""`gmtool evaluate`: how good a model or a folder of masks is, how sure that is, and whether it beats another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gmtool.cli.scoring import (
    data_settings,
    run_task,
    score_masks,
    score_model,
    write_comparison,
    write_report,
)
from gmtool.config import LayoutName, MaskValues
from gmtool.errors import ConfigError, needs_extra

if TYPE_CHECKING:
    from gmtool_serving.backends.multi_view import Averaging

    from gmtool.report.comparison import Comparison
    from gmtool.report.report import IoUReport

WHOLE = "1.0"


def evaluate(
    model: Annotated[
        Path | None, typer.Option(help="Exported model; default: the newest one below runs/.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set; default: that of the model's run.")
    ] = None,
    layout: Annotated[
        LayoutName | None,
        typer.Option(help="Layout of --data; default: that of the model's run."),
    ] = None,
    list_: Annotated[
        Path | None, typer.Option("--list", help="List of the images to score; default: the validation set.")
    ] = None,
    sliding: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Look through windows of this size; needs a model with logits."),
    ] = None,
    stride: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Step of the windows; default: two thirds of their size."),
    ] = None,
    scales: Annotated[
        str, typer.Option(help="Look at these sizes, such as 0.5,0.75,1.0,1.25,1.5; needs logits.")
    ] = WHOLE,
    flip: Annotated[bool, typer.Option("--flip", help="Look at the mirror image too; needs logits.")] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Score these masks instead of a model: a folder of PNG or npz, or COCO results (.json)."
        ),
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(help="Masks to score --predictions against; or give --data.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes of --predictions: voc, cityscapes, context, or a classes.json.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images of --ground-truth, for the pictures of the report.")
    ] = None,
    mask_dir: Annotated[str | None, typer.Option(help="Folder of the masks in layout voc.")] = None,
    mask_values: Annotated[
        MaskValues | None,
        typer.Option(
            help="Ground truth holds class indices (trainIds), raw ids (labelIds) or colours; of a folder it is "
            "recognised."
        ),
    ] = None,
    prediction_values: Annotated[
        MaskValues | None, typer.Option(help="The same of --predictions; default: recognised.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One setting of the data, such as data.masks."),
    ] = None,
    boundary: Annotated[
        bool, typer.Option("--boundary", help="Boundary IoU too: how well contours agree.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Take this saved report.json, or the folder of one, instead of scoring.")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Compare with this saved report.json, or the folder of one; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, .json and .md, classes.csv, images.csv, comparison.*."),
    ] = None,
    official_json: Annotated[
        Path | None, typer.Option(help="File for the score in the keys of cityscapesScripts.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 for one a core.")] = 0,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run a TensorRT plan that no sidecar vouches for: it is executable.")
    ] = False,
) -> None:
    """Score a model on a data set, or masks against masks; compare with earlier scores.

    By default a model sees whole images at their own size, one scale, no flip. Ignored pixels are not counted;
    classes that occur nowhere are left out of the mean. Exit code 3 if some images could not be scored.
    """
    from gmtool.console import remark
    from gmtool.files import write_atomically
    from gmtool.report.cityscapes_json import official_dict, require_cityscapes
    from gmtool.report.comparison import compare
    from gmtool.report.report import format_json

    others = [_load(path) for path in against or []]  # before the work: a damaged one would waste it
    looks = {"--sliding": sliding, "--stride": stride, "--flip": flip, "--scales": scales != WHOLE}
    of_data = {"--data": data, "--layout": layout, "--set": set_}
    of_masks = {
        "--predictions": predictions,
        "--ground-truth": ground_truth,
        "--prediction-values": prediction_values,
    }
    values = {"root": data, "layout": layout, "mask_dir": mask_dir, "mask_values": mask_values}
    task = None
    if report is not None:
        anew = {"--model": model, "--list": list_, "--boundary": boundary} | of_data | of_masks | looks
        _refuse(anew, "scores anew, --report takes a saved score: take one of them")
        scored = _load(report)
    elif any(of_masks.values()):
        of_model = {"--model": model} | looks | (of_data if data is None else {})
        _refuse(of_model, "scores a model, --predictions masks: take one of them")
        task = score_masks(
            predictions,
            ground_truth,
            list_,
            data_settings(set_ or [], {} if data is None else values),
            classes=classes,
            values=mask_values,
            prediction_values=prediction_values,
            images=images,
        )
    else:
        _refuse({"--classes": classes, "--images": images}, "is for --predictions; a model knows its own")
        settings = data_settings(set_ or [], values)
        averaging = _averaging(sliding, stride, scales, flip=flip)
        task = score_model(
            model, settings, list_, device=device, threads=threads, averaging=averaging, trust=trust
        )
    if task is not None:
        if official_json is not None:
            require_cityscapes(task.classes)
        scored = run_task(task, with_boundary=boundary)
    if out is not None:
        remark(f"report: {write_report(scored, task, out)}")
    if official_json is not None:
        write_atomically(official_json, format_json(official_dict(scored)) + "\n")
        remark(f"in the keys of cityscapesScripts: {official_json}")
    comparison = compare(scored, others) if others else None
    if comparison is not None and out is not None:
        remark(f"comparison: {write_comparison(comparison, out)}")
    _print(scored, comparison, as_json=as_json)
    if scored.failed:
        raise typer.Exit(3)


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


def _load(path: Path) -> IoUReport:
    from gmtool.report.report import load_report

    return load_report(path)


def _refuse(options: dict[str, Any], why: str) -> None:
    for option, value in options.items():
        if value:
            raise ConfigError(f"{option} {why}")


def _averaging(sliding: str | None, stride: str | None, scales: str, *, flip: bool) -> Averaging:
    with needs_extra("serve", "evaluating"):
        from gmtool_serving.backends.multi_view import Averaging
    try:
        sizes = tuple(float(scale) for scale in scales.split(","))
    except ValueError as error:
        raise ConfigError(f"--scales {scales}: expected numbers with commas, such as 0.5,1.0,1.5") from error
    return Averaging(_size(sliding, "--sliding"), _size(stride, "--stride"), sizes, flip)


def _size(text: str | None, option: str) -> tuple[int, int] | None:
    """Return height and width from "512x1024", or from "512" for both."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise ConfigError(f"{option} {text}: expected HEIGHTxWIDTH in pixels, such as 512x1024")
    return int(match[1]), int(match[2] or match[1])
