"""Load a model, and predict masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gmtool.api.arguments import Device, ModelLike, PathLike, Size, as_path
from gmtool.errors import UsageError, did_you_mean, needs_extra

if TYPE_CHECKING:
    from gmtool_serving.outputs.formats import FormatName
    from gmtool_serving.pipeline.job import Observer, PredictionSummary
    from gmtool_serving.pipeline.model import Model

    from gmtool.config import MaskValues
    from gmtool.labels.outlines import OutlineOptions


def load(
    model: PathLike | None = None, *, device: Device = "auto", threads: int = 0, trust: bool = False
) -> Model:
    """Load an exported model.

    Args:
        model: ONNX model, TensorRT plan, or run folder; None for the newest model below `runs/`.
        device: `auto` takes CUDA where it works.
        threads: Processor threads of an ONNX model; 0 for one a core.
        trust: Run an ONNX model that was changed after its export, or a TensorRT plan that no sidecar vouches for:
            plans are executable.

    Raises:
        ArtifactError: The file is missing, damaged or foreign.
        BackendError: Device unavailable.
        MissingExtraError: The runtime is not installed.
    """
    from gmtool.artifact.lookup import find_model

    with needs_extra("serve", "running a model"):
        from gmtool_serving.backends.opening import open_backend
        from gmtool_serving.pipeline.model import Model
    return Model(open_backend(find_model(model), device=device, threads=threads, trust=trust))


def predict(
    inputs: PathLike | Sequence[PathLike],
    *,
    out: PathLike,
    model: ModelLike = None,
    format: str | Sequence[str] = "voc",
    ground_truth: PathLike | None = None,
    mask_values: MaskValues | None = None,
    resume: bool = False,
    shard: str | None = None,
    batch: int | None = None,
    pad: int = 0,
    tile: Size | None = None,
    overlap: int | None = None,
    min_confidence: float | None = None,
    exif: Literal["apply", "ignore"] = "apply",
    bits: int = 16,
    max_pixels: int | None = None,
    root: PathLike | None = None,
    stride: int = 1,
    tolerance: float | None = None,
    min_area: int | None = None,
    workers: int | None = None,
    device: Device = "auto",
    threads: int = 0,
    trust: bool = False,
    ray: str | None = None,
    ray_actors: int | None = None,
    ray_cpus: float | None = None,
    ray_gpus: float | None = None,
    observer: Observer | None = None,
) -> PredictionSummary:
    """Write a mask for each image of files, folders, globs, lists, COCO files and videos.

    Images that fail are counted in the summary, with their reasons in `manifest.jsonl`; they raise nothing.

    Args:
        inputs: One or several; as strings also globs and `@FILE`, a list.
        out: Folder for the masks; made if its parent exists.
        model: Exported model; for a loaded one, `device`, `threads` and `trust` were those of `load`.
        format: `voc`, `voc-submission`, `cityscapes`, `trainids`, `color`, `overlay`, `coco`, `npz`; for labeling
            tools `labelme`, `cvat`, `label-studio`, `coco-annotations`, `yolo`, `datumaro`. Several go to folders
            of their own below `out`.
        ground_truth: Folder of true masks to score the masks against.
        mask_values: Encoding of the true masks: `index`, `raw` or `color`; None to recognise it.
        resume: Do only what is missing, has changed, or failed before.
        shard: Part of the job: "1/4", "2/4", ...
        batch: Images of one size computed at once. [1; on a GPU 8, of a plan its best]
        pad: Pad images to a multiple of so many pixels, so that more have one size.
        tile: Height and width of tiles for larger images; needs a model with logits.
        overlap: Pixels that tiles share. [a quarter]
        min_confidence: Pixels whose largest probability is smaller, in [0, 1], get the ignore label; needs a model
            with confidence.
        exif: Masks of images as displayed, or as stored.
        bits: Bits that 16-bit grey images use, 8 to 16.
        max_pixels: Larger images fail. [200 000 000]
        root: Folder of relative paths in lists and COCO files.
        stride: Take every n-th frame of a video.
        tolerance: Largest distance of an outline from its pixels, for labeling tools. [1]
        min_area: Smallest part in pixels, for labeling tools. [16]
        workers: Decoding processes; 0 decodes in threads. [one a core, at most 8, fewer in
            little memory; 0 for up to 4 images]
        device: See `load`.
        threads: See `load`.
        trust: See `load`.
        ray: Ray cluster: `auto`, HOST:PORT, or `local`. Inputs, `out` and `model` may then be URIs.
        ray_actors: Workers that predict.
        ray_cpus: Processors of each.
        ray_gpus: GPUs of each.
        observer: Follows the job, for a progress bar.

    Raises:
        ArtifactError: The model is missing, damaged or foreign.
        ConfigError: The model cannot give what was asked for.
        DataError: No image, a folder that cannot be written, or a full disk.
        UnfinishedError: All masks are written, but a file of the whole run or the score cannot be made.
        UsageError: A bad value, or keywords that contradict each other.
    """

    with needs_extra("serve", "predicting"):
        from gmtool_serving.backends.tiles import parse_tiling
        from gmtool_serving.inputs.collect import collect_images
        from gmtool_serving.inputs.decode import DecodeOptions
        from gmtool_serving.inputs.shards import Shard
        from gmtool_serving.pipeline.compute import ComputeOptions, parse_min_confidence
        from gmtool_serving.pipeline.job import Scoring, predict_job, refuse_uris
        from gmtool_serving.pipeline.model import Model
        from gmtool_serving.pipeline.run import PredictOptions
    # What is asked for
    formats = formats_of(format)
    names = [os.fspath(one) for one in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    pixels = DecodeOptions.max_pixels if max_pixels is None else max_pixels
    options = PredictOptions(
        formats=formats,
        decode=DecodeOptions(exif == "apply", pixels, bits),
        compute=ComputeOptions(pad, parse_tiling(tile, overlap), parse_min_confidence(min_confidence)),
        batch=batch,
        workers=workers,
        resume=resume,
        shard=None if shard is None else Shard.parse(shard),
        outlines=outlines_of(formats, tolerance, min_area),
    )
    if min_confidence is not None and "voc-submission" in formats:
        raise UsageError("--min-confidence does not go with --format voc-submission, which has no ignored pixels")
    scoring = None if ground_truth is None else Scoring.of(Path(ground_truth), mask_values, formats)
    given_root, model_path = None if root is None else os.fspath(root), model
    if isinstance(model_path, Model):
        model_path = model_path.path
    # On a cluster
    if mask_values is not None and ground_truth is None:
        raise UsageError("--mask-values needs --ground-truth DIR")
    for option, value in (("--ray-actors", ray_actors), ("--ray-cpus", ray_cpus), ("--ray-gpus", ray_gpus)):
        if ray is None and value is not None:
            raise UsageError(f"{option} needs --ray")
    if ray is not None:
        from gmtool_serving.cluster.job import RayOptions, predict_on_ray, refuse_with_ray
        from gmtool_serving.cluster.ray import Wanted

        refuse_with_ray(
            {
                "--shard": shard is not None,
                "--workers": workers is not None,
                "--stride": stride != 1,
                "--trust": trust,
            }
        )
        return predict_on_ray(
            names,
            os.fspath(out),
            options,
            RayOptions(ray, Wanted(ray_actors, ray_cpus, ray_gpus)),
            model=None if model_path is None else os.fspath(model_path),
            root=given_root,
            device=device,
            threads=threads,
            scoring=scoring,
            observer=observer,
        )
    # On this machine
    refuse_uris([*names, os.fspath(out), None if model_path is None else os.fspath(model_path), given_root])
    images = collect_images(names, Path(out), root=as_path(root), stride=stride)
    loaded = model if isinstance(model, Model) else None
    return predict_job(
        images,
        Path(out),
        options,
        lambda: (loaded or load(model_path, device=device, threads=threads, trust=trust)).backend,
        scoring=scoring,
        observer=observer,
    )


def outlines_of(formats: Sequence[FormatName], tolerance: float | None, min_area: int | None) -> OutlineOptions:
    """Return the detail of the shapes of labeling tools.

    Raises:
        UsageError: It is given, but no format has shapes.
    """
    from gmtool_serving.outputs.tool_formats import TOOL_FORMATS, is_tool_format

    from gmtool.labels.outlines import OutlineOptions

    given = {"tolerance_px": tolerance, "min_area_px": min_area}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if asked and not any(map(is_tool_format, formats)):
        option = f"--{next(iter(asked)).removesuffix('_px').replace('_', '-')}"
        raise UsageError(f"{option} is for labeling tools: --format {', '.join(TOOL_FORMATS)}")
    return OutlineOptions(**asked)


def formats_of(wanted: str | Sequence[str]) -> tuple[FormatName, ...]:
    """Return the output formats, each once.

    Raises:
        UsageError: One does not exist.
    """
    from gmtool_serving.outputs.formats import FORMAT_NAMES

    known: dict[str, FormatName] = {name: name for name in FORMAT_NAMES}
    names = [name for text in ([wanted] if isinstance(wanted, str) else wanted) for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"--format: unknown format {name}{did_you_mean(name, known)}")
    return tuple(dict.fromkeys(known[name] for name in names))
