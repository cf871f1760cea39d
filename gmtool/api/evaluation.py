"""Score a model or masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmtool.api.arguments import Device, ModelLike, PathLike, Size, as_path, given, refuse, refuse_idle
from gmtool.api.prediction import load
from gmtool.errors import UsageError, needs_extra

if TYPE_CHECKING:
    from gmtool_serving.scoring.evaluate import Task

    from gmtool.config import LayoutName, MaskValues
    from gmtool.report.report import IoUReport
    from gmtool.settings import Settings


def evaluate(
    model: ModelLike = None,
    *,
    data: PathLike | None = None,
    layout: LayoutName | None = None,
    list_path: PathLike | None = None,
    sliding: Size | None = None,
    stride: Size | None = None,
    scales: str | Sequence[float] = (1.0,),
    flip: bool = False,
    predictions: PathLike | None = None,
    ground_truth: PathLike | None = None,
    classes: PathLike | None = None,
    images: PathLike | None = None,
    mask_dir: str | None = None,
    mask_values: MaskValues | None = None,
    prediction_values: MaskValues | None = None,
    settings: Settings | Sequence[str] = (),
    boundary: bool = False,
    out: PathLike | None = None,
    official_json: PathLike | None = None,
    device: Device = "auto",
    threads: int = 0,
    trust: bool = False,
    progress: Callable[[Iterable[str]], Iterator[str]] = iter,
) -> IoUReport:
    """Score a model on a data set, or masks against masks.

    Args:
        model: Exported model, scored on the validation set of its run unless `data` is given.
        data: Folder of the data set.
        layout: Layout of `data`; by default that of the model's run.
        list_path: List of the images to score; by default the validation set. (`--list`)
        sliding: Height and width of sliding windows; needs a model with logits.
        stride: Step of the windows, down and across. [two thirds of their size]
        scales: Sizes of the image over its own, whose logits are averaged.
        flip: Average with the mirror image.
        predictions: Masks to score instead of a model: a folder of PNG or npz, or COCO results (.json).
        ground_truth: Masks to score `predictions`, or a model on `images`, against; or give `data`.
        classes: Classes of `predictions`: `voc`, `cityscapes`, `context`, or a classes.json.
        images: Folder of the images of `ground_truth`: what the model sees, or pictures of the report.
        mask_dir: Folder of the masks in layout `voc`.
        mask_values: Encoding of the ground truth: `index`, `raw` or `color`.
        prediction_values: Encoding of `predictions`; None to recognise it.
        settings: Settings of the data: `{"data.bits": 12}` or `["data.bits=12"]`.
        boundary: Compute boundary IoU too.
        out: Folder for report.html, .json and .md, classes.csv, images.csv.
        official_json: File for the score in the keys of cityscapesScripts.
        device: See `load`.
        threads: See `load`.
        trust: See `load`.
        progress: Passes the ids of the images on, for a progress bar.

    Returns:
        Confusion matrix, metrics and their protocol; images that could not be scored are in `failed`.

    Raises:
        ArtifactError: The model is missing, damaged or foreign.
        DataError: No image could be scored.
        UsageError: Keywords that contradict each other.
    """
    from gmtool.files import write_atomically
    from gmtool.report.cityscapes_json import official_dict, require_cityscapes
    from gmtool.report.report import format_json

    with needs_extra("serve", "evaluating"):
        from gmtool_serving.backends.multi_view import parse_averaging
        from gmtool_serving.pipeline.model import Model
        from gmtool_serving.scoring.evaluate import score
        from gmtool_serving.scoring.prepare import prepare_folder, prepare_masks, prepare_model
        from gmtool_serving.scoring.report_files import write_report
    averaging = parse_averaging(sliding, stride, scales, flip=flip)
    for_masks = {
        "--predictions": predictions,
        "--ground-truth": ground_truth,
        "--prediction-values": prediction_values,
    }
    values = {"root": data, "layout": layout, "mask_dir": mask_dir, "mask_values": mask_values}
    task: Task
    if ground_truth is not None and predictions is None and images is not None:
        of_data = {"--data": data, "--layout": layout, "--mask-dir": mask_dir, "--set": settings}
        refuse(of_data, "is of a data set, --images and --ground-truth are folders: take one of them")
        refuse({"--classes": classes, "--prediction-values": prediction_values}, "is for --predictions")
        loaded = model if isinstance(model, Model) else load(model, device=device, threads=threads, trust=trust)
        task = prepare_folder(
            loaded.backend,
            Path(images),
            Path(ground_truth),
            as_path(list_path),
            values=mask_values,
            averaging=averaging,
        )
    elif any(for_masks.values()):
        views: dict[str, object] = {"--sliding": sliding, "--flip": flip, "--scales": averaging.scales != (1.0,)}
        runtime: dict[str, object] = {"--device": device != "auto", "--threads": threads, "--trust": trust}
        refuse({"--model": model, **views, **runtime}, "scores a model, --predictions masks: take one of them")
        of_data = {"--layout": layout, "--mask-dir": mask_dir, "--set": settings}
        refuse_idle(of_data, used=data is not None, needs="--data, which has the ground truth")
        task = prepare_masks(
            as_path(predictions),
            as_path(ground_truth),
            as_path(list_path),
            _data_settings(settings, {} if data is None else values),
            classes=None if classes is None else os.fspath(classes),
            values=mask_values,
            prediction_values=prediction_values,
            images=as_path(images),
        )
    else:
        refuse({"--images": images}, "needs --ground-truth DIR: masks of the same names")
        refuse({"--classes": classes}, "is for --predictions; a model knows its own")
        chosen = _data_settings(settings, values)
        loaded = model if isinstance(model, Model) else load(model, device=device, threads=threads, trust=trust)
        task = prepare_model(loaded.backend, chosen, as_path(list_path), averaging=averaging)
    if official_json is not None:
        require_cityscapes(task.classes)
    report = score(task, progress=progress, with_boundary=boundary)
    if out is not None:
        write_report(report, task, Path(out))
    if official_json is not None:
        write_atomically(Path(official_json), format_json(official_dict(report)) + "\n")
    return report


def _data_settings(settings: Settings | Sequence[str], options: Mapping[str, Any]) -> Settings:
    """Return settings of the data by dotted name.

    Raises:
        UsageError: A setting of something else.
    """
    from gmtool.settings import as_settings

    chosen = as_settings(settings)
    for name in chosen:
        if not name.startswith("data."):
            raise UsageError(f"--set {name}: a model is evaluated as it is; only settings of the data apply")
    return {**chosen, **given({f"data.{name}": value for name, value in options.items()})}
