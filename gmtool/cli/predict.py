"""`gmtool predict`: masks for files, folders, globs, lists, COCO files and videos."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gmtool.cli import stop
from gmtool.cli.prediction import progress_of, result_line, speed_line, tell_kinds
from gmtool.config import MaskValues
from gmtool.errors import ConfigError, DataError, MessageKinds, did_you_mean, needs_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmtool_serving.backends.base import Backend
    from gmtool_serving.backends.tiles import Tiling
    from gmtool_serving.inputs.collect import InputImage
    from gmtool_serving.outputs.formats import FormatName
    from gmtool_serving.pipeline.run import PredictionRun, PredictOptions

    from gmtool.report.report import IoUReport

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Scoring:
    """What predicted masks are compared with afterwards."""

    ground_truth: Path
    values: MaskValues | None
    format: FormatName
    """The one of the written formats that is read again."""


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images, videos, folders (with all below), globs, COCO .json, @FILE: a list, -: a list on stdin."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder for the masks; made if its parent exists.")],
    model: Annotated[str | None, typer.Option(help="Exported model; default: the newest one below runs/.")] = None,
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="voc, voc-submission, cityscapes, trainids, color, overlay, coco or npz; several (again, or with "
            "commas) go to folders of their own below --out. [voc]",
        ),
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(help="Folder of true masks: print the mIoU of the predicted ones.")
    ] = None,
    mask_values: Annotated[
        MaskValues | None,
        typer.Option(help="True masks hold class indices (trainIds), raw ids or colours. [recognised]"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Do only what is missing, has changed, or failed before.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="NUMBER/COUNT", help="Do one part of the job: 1/4, 2/4, ...")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images of one size computed at once. [1; on a GPU 8]")
    ] = None,
    pad: Annotated[
        int, typer.Option(min=0, metavar="PX", help="Pad images to a multiple, so that more have one size.")
    ] = 0,
    tile: Annotated[
        str | None, typer.Option(metavar="HxW", help="Cut larger images into tiles of this size.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, metavar="PX", help="Pixels that tiles share. [a quarter]")
    ] = None,
    exif: Annotated[
        Literal["apply", "ignore"], typer.Option(help="Masks of images as displayed, or as stored.")
    ] = "apply",
    bits: Annotated[
        int, typer.Option(min=8, max=16, help="Bits that 16-bit grey images use: 12 for many cameras.")
    ] = 16,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse larger images before decoding. [200000000]")
    ] = None,
    root: Annotated[
        str | None, typer.Option(help="Folder of relative paths in lists and COCO files. [that of the file]")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Take every n-th frame of a video.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Decoding processes; 0 decodes in threads. [one a core, at most 8; 0 for up to 4 images]"
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 for one a core.")] = 0,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Predict on a Ray cluster: auto (which --ray alone means), HOST:PORT, or local for one that is "
            "started here. Inputs, --out and --model may then be s3:// and the like.",
        ),
    ] = None,
    ray_actors: Annotated[
        int | None, typer.Option(min=1, help="Workers that predict. [as many as there is room for]")
    ] = None,
    ray_cpus: Annotated[float | None, typer.Option(min=0.1, help="Processors of each. [1]")] = None,
    ray_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each; 0.5 lets two share one. [1 if there are any]")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run a TensorRT plan that no sidecar vouches for: it is executable.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print failures and the result alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Write a mask for each image: a palette PNG of class indices at the image's own size, or other formats.

    Masks lie in --out under the images' relative paths, and manifest.jsonl says what became of each input.
    Images that fail are listed, the others are done, and the exit code is 3; 1 if all failed.
    """
    from gmtool.artifact.runs import newest_model
    from gmtool.cli import predict_ray

    with needs_extra("serve", "predicting"):
        from gmtool_serving.inputs.collect import collect_images
        from gmtool_serving.inputs.decode import DecodeOptions
        from gmtool_serving.inputs.shards import Shard
        from gmtool_serving.outputs.formats import check_names
        from gmtool_serving.pipeline.compute import ComputeOptions
        from gmtool_serving.pipeline.run import PredictOptions
    formats = _formats(format_ or ["voc"])
    options = PredictOptions(
        formats=formats,
        decode=DecodeOptions(
            exif == "apply", DecodeOptions.max_pixels if max_pixels is None else max_pixels, bits
        ),
        compute=ComputeOptions(pad, _tiling(tile, overlap)),
        batch=batch,
        workers=workers,
        resume=resume,
        shard=None if shard is None else Shard.parse(shard),
    )
    scoring = None if ground_truth is None else Scoring(ground_truth, mask_values, _index_format(formats))
    ray_wanted = predict_ray.ray_options(ray, actors=ray_actors, cpus=ray_cpus, gpus=ray_gpus)
    if ray_wanted is not None:
        given = {
            "--shard": shard is not None,
            "--workers": workers is not None,
            "--stride": stride != 1,
            "--trust": trust,
        }
        predict_ray.refuse_with_ray(given)
        predict_ray.check_places(formats, out, scored=scoring is not None)
        images = predict_ray.collect_for_ray(inputs, out, root=root)
        check_names(formats, images)
        opened = predict_ray.opened_on_ray(
            images,
            out,
            options,
            ray_wanted,
            model=model or str(newest_model()),
            device=device,
            threads=threads,
            quiet=quiet,
        )
        with opened as (run, backend):
            carry_out(run, backend, images, scoring=scoring, quiet=quiet, as_json=as_json)
        return
    predict_ray.refuse_uris([*inputs, out, model, root])
    images = collect_images(inputs, Path(out), root=None if root is None else Path(root), stride=stride)
    run_prediction(
        images,
        Path(out),
        options,
        model=None if model is None else Path(model),
        device=device,
        threads=threads,
        trust=trust,
        scoring=scoring,
        quiet=quiet,
        as_json=as_json,
    )


def run_prediction(
    images: Sequence[InputImage],
    out: Path,
    options: PredictOptions,
    *,
    model: Path | None,
    device: Device,
    threads: int,
    trust: bool = False,
    scoring: Scoring | None = None,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Predict, show progress, list failures.

    Raises:
        typer.Exit: With 3 if some images failed, with 1 if all did, with 130 or 143 if it was stopped.
    """
    from gmtool.artifact.runs import newest_model

    with needs_extra("serve", "predicting"):
        from gmtool_serving.backends.opening import open_backend
        from gmtool_serving.outputs.formats import check_names
        from gmtool_serving.pipeline.run import PredictionRun
    check_names(options.formats, images)
    with PredictionRun(images, out, options) as run:
        backend = open_backend(model or newest_model(), device=device, threads=threads, trust=trust)
        carry_out(run, backend, images, scoring=scoring, quiet=quiet, as_json=as_json)


def carry_out(
    run: PredictionRun,
    backend: Backend,
    images: Sequence[InputImage],
    *,
    scoring: Scoring | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run to the end, make the files of the whole, score, and tell what came of it; see `run_prediction`."""
    from gmtool.console import remark

    if not quiet:
        remark(f"model {backend.model}, {backend.description}")
    stopped = _follow(run, backend, quiet=quiet)
    if stopped is not None:
        _tell(run, backend, None, as_json=as_json)
        raise typer.Exit(stopped)
    usable = run.tally.ok + run.tally.skipped
    score = problem = None
    try:
        run.make_files_of_the_whole(images)
        if scoring is not None and usable:
            score = _score(run, backend, images, scoring)
    except DataError as error:  # the masks are there nevertheless: that is said first
        problem = error
    _tell(run, backend, score, as_json=as_json)
    if problem is not None:
        raise problem
    if run.tally.failed:
        raise typer.Exit(3 if usable else 1)


def _follow(run: PredictionRun, backend: Backend, *, quiet: bool) -> int | None:
    """Run to the end and say what is to be said; return the exit code of a run that was stopped."""
    from gmtool.console import remark

    failures, warnings = MessageKinds(), MessageKinds()
    with stop.calling_on_stop(run.interrupt), progress_of(run, quiet=quiet) as update:
        for outcome in run.outcomes(backend):
            if outcome.error is not None:
                failures.add(str(outcome.image), outcome.error)
            if outcome.warning is not None and not outcome.skipped:
                warnings.add(str(outcome.image), outcome.warning)
            update()
    tell_kinds("warning", warnings, run.folder.manifest_name)
    tell_kinds("failed", failures, run.folder.manifest_name)
    if not quiet and run.tally.ok:
        remark(speed_line(run))
    return stop.exit_code()


def _score(run: PredictionRun, backend: Backend, images: Sequence[InputImage], scoring: Scoring) -> IoUReport:
    """Return the score of what was predicted, over the images that have ground truth."""
    from gmtool_serving.scoring.evaluate import score
    from gmtool_serving.scoring.tasks import masks_task

    from gmtool.data.splits import format_split
    from gmtool.resources import temporary_dir

    # A list has lines: the rare name that is not one cannot stand in it
    names = [name for name in (str(image.output) for image in images) if name.isprintable()]
    with temporary_dir() as folder:
        listed = folder / "predicted.txt"
        listed.write_text(format_split(names), encoding="utf-8")
        task = masks_task(
            run.folders[scoring.format],
            scoring.ground_truth,
            listed,
            classes=backend.spec.classes,
            values=scoring.values,
            prediction_values="index",
        )
        return score(task, progress=iter)


def _tell(run: PredictionRun, backend: Backend, score: IoUReport | None, *, as_json: bool) -> None:
    """Print what came out on stdout, and what could not be scored on stderr."""
    from gmtool.console import result

    if score is not None:
        from gmtool.report.tables import failed_kinds, left_out_kinds

        for kinds in (failed_kinds(score), left_out_kinds(score)):
            tell_kinds("not scored", kinds, "gmtool evaluate --predictions")
    if as_json:
        scored = {} if score is None else {"score": score.to_dict()}
        result(json.dumps(run.summary(backend) | scored))
        return
    result(result_line(run))
    if score is not None:
        from gmtool.report.report import percent

        count = len(score.failed) + len(score.left_out)
        left_out = f", {count} left out" if count else ""
        result(f"mIoU {percent(score.miou)} % of {score.num_images} images{left_out}")


def _tiling(tile: str | None, overlap: int | None) -> Tiling | None:
    from gmtool_serving.backends.tiles import Tiling

    if tile is None:
        if overlap is not None:
            raise ConfigError("--overlap is of tiles: give --tile HEIGHTxWIDTH with it")
        return None
    height, _, width = tile.lower().partition("x")
    if not height.isdecimal() or not (width or height).isdecimal():
        raise ConfigError(f"--tile {tile}: expected HEIGHTxWIDTH in pixels, such as 512x512")
    sizes = int(height), int(width or height)
    return Tiling(*sizes, overlap=min(sizes) // 4 if overlap is None else overlap)


def _formats(texts: Sequence[str]) -> tuple[FormatName, ...]:
    from gmtool_serving.outputs.formats import FORMAT_NAMES

    wanted = [name for text in texts for name in text.split(",")]
    known: dict[str, FormatName] = {name: name for name in FORMAT_NAMES}
    for name in wanted:
        if name not in known:
            raise typer.BadParameter(f"unknown format {name}{did_you_mean(name, known)}", param_hint="--format")
    return tuple(dict.fromkeys(known[name] for name in wanted))


def _index_format(formats: Sequence[FormatName]) -> FormatName:
    """Return a format that holds class indices, which can be scored."""
    for name in formats:
        if name in ("voc", "trainids"):
            return name
    raise ConfigError("--ground-truth scores class indices: add --format voc or --format trainids")
