"""`gmtool predict`: masks for files, folders, globs, lists, COCO files and videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.api import prediction
from gmtool.cli import signals
from gmtool.cli.options import (
    AsJson,
    Batch,
    Bits,
    Device,
    Exif,
    MaskEncoding,
    MaxPixels,
    Model,
    Threads,
    Trust,
    groups,
)
from gmtool.console import result
from gmtool.errors import needs_extra

if TYPE_CHECKING:
    from gmtool_serving.pipeline.job import PredictionSummary

EPILOG = groups(
    {
        "output": "--format --resume --shard --quiet --json",
        "score": "--ground-truth --mask-values",
        "images": "--exif --bits --max-pixels --root --stride",
        "masks": "--tile --overlap --pad --min-confidence",
        "labeling": "--tolerance --min-area",
        "machine": "--device --batch --threads --workers --trust",
        "cluster": "--ray --ray-actors --ray-cpus --ray-gpus",
    }
)


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images, videos, folders (with all below), globs, COCO .json, @FILE: a list, -: a list on stdin."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder for the masks; made if its parent exists.")],
    model: Model = None,
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="voc, voc-submission, cityscapes, trainids, color, overlay, coco or npz; for labeling tools: "
            "labelme, cvat, label-studio, coco-annotations, yolo or datumaro; several (again, or with commas) go "
            "to folders of their own below --out. [voc]",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Do only what is missing, has changed, or failed before.")
    ] = False,
    tile: Annotated[
        str | None, typer.Option(metavar="HxW", help="Cut larger images into tiles of this size.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, metavar="PX", help="Pixels that tiles share. [a quarter]")
    ] = None,
    pad: Annotated[
        int, typer.Option(min=0, metavar="PX", help="Pad images to a multiple, so that more have one size.")
    ] = 0,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, metavar="P", help="Pixels that the model is less sure of get no label. [0]"
        ),
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(help="Folder of true masks: print the mIoU of the predicted ones.")
    ] = None,
    mask_values: MaskEncoding = None,
    shard: Annotated[
        str | None, typer.Option(metavar="NUMBER/COUNT", help="Do one part of the job: 1/4, 2/4, ...")
    ] = None,
    exif: Exif = "apply",
    bits: Bits = 16,
    max_pixels: MaxPixels = None,
    root: Annotated[
        str | None, typer.Option(help="Folder of relative paths in lists and COCO files. [that of the file]")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Take every n-th frame of a video.")] = 1,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="PX", help="Distance of shapes from their pixels, for labeling tools. [1]"),
    ] = None,
    min_area: Annotated[
        int | None, typer.Option(min=0, metavar="PX", help="Smallest shape, for labeling tools. [16]")
    ] = None,
    device: Device = "auto",
    batch: Batch = None,
    threads: Threads = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Decoding processes; 0 decodes in threads. [one a core, at most 8, fewer in little memory; "
            "0 for up to 4 images]",
        ),
    ] = None,
    trust: Trust = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Predict on a Ray cluster: auto, HOST:PORT, or local for one that is started here. Inputs, --out "
            "and --model may then be s3:// and the like.",
        ),
    ] = None,
    ray_actors: Annotated[
        int | None, typer.Option(min=1, help="Workers that predict. [as many as there is room for]")
    ] = None,
    ray_cpus: Annotated[float | None, typer.Option(min=0.1, help="Processors of each. [1]")] = None,
    ray_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each; 0.5 lets two share one. [1 if there are any]")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print failures and the result alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a mask for each image: a palette PNG of class indices at the image's own size, or other formats.

    Masks lie in --out under the images' relative paths, and manifest.jsonl says what became of each input.
    Images that fail are listed, the others are done, and the exit code is 3; 1 if all failed.
    """
    with needs_extra("serve", "predicting"):
        from gmtool_serving.pipeline.job import UnfinishedError

        from gmtool.cli.terminal.progress import TerminalObserver
    try:
        summary = prediction.predict(
            inputs,
            out=out,
            model=model,
            format=format_ or "voc",
            ground_truth=ground_truth,
            mask_values=mask_values,
            resume=resume,
            shard=shard,
            batch=batch,
            pad=pad,
            tile=tile,
            overlap=overlap,
            min_confidence=min_confidence,
            exif=exif,
            bits=bits,
            max_pixels=max_pixels,
            root=root,
            stride=stride,
            tolerance=tolerance,
            min_area=min_area,
            workers=workers,
            device=device,
            threads=threads,
            trust=trust,
            ray=ray,
            ray_actors=ray_actors,
            ray_cpus=ray_cpus,
            ray_gpus=ray_gpus,
            observer=TerminalObserver(quiet=quiet),
        )
    except UnfinishedError as error:  # the masks are there nevertheless: that is said first
        show_summary(error.summary, as_json=as_json)
        raise
    show_summary(summary, as_json=as_json)
    end_as(summary)


def show_summary(summary: PredictionSummary, *, as_json: bool = False) -> None:
    """Print the result on stdout, and what could not be scored on stderr."""
    score = summary.score
    if score is not None:
        from gmtool.cli.terminal.progress import tell_kinds
        from gmtool.report.tables import failed_kinds, left_out_kinds

        for kinds in (failed_kinds(score), left_out_kinds(score)):
            tell_kinds("not scored", kinds, "gmtool evaluate --predictions")
    if as_json:
        result(json.dumps(summary.to_dict()))
        return
    result(_result_line(summary))
    if score is not None:
        from gmtool.report.report import percent

        count = len(score.failed) + len(score.left_out)
        left_out = f", {count} left out" if count else ""
        result(f"mIoU {percent(score.miou)} % of {score.num_images} images{left_out}")


def end_as(summary: PredictionSummary) -> None:
    """End with the exit code of a job that was stopped, or of which images failed.

    Raises:
        typer.Exit: With 3 if some images failed, with 1 if all did, with 130 or 143 if it was stopped.
    """
    stopped = signals.exit_code()
    if stopped is not None:
        raise typer.Exit(stopped)
    if summary.failed:
        raise typer.Exit(3 if summary.usable else 1)


def _result_line(summary: PredictionSummary) -> str:
    from gmtool.escaping import printable

    skipped = f"{summary.skipped} skipped, " if summary.skipped else ""
    not_reached = f"{summary.not_reached} not reached, " if summary.not_reached else ""
    speed = f"{summary.images_per_s:.1f} images/s"
    return (
        f"{summary.ok} masks in {printable(summary.out)}, {skipped}{summary.failed} failed, {not_reached}{speed}"
    )
