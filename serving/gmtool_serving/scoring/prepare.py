"""Prepare scoring: find the data set of a model's run, or pair a folder of masks with ground truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gmtool.artifact.run_config import load_run_config, refuse_missing_data
from gmtool.artifact.runs import run_of_model
from gmtool.classes import load_classes
from gmtool.config import DataConfig, MaskValues
from gmtool.console import remark
from gmtool.data.datasets import load_split
from gmtool.data.recognize import recognize_kind
from gmtool.errors import ConfigError, UsageError
from gmtool.settings import Settings, build_config
from gmtool_serving.backends.base import Backend
from gmtool_serving.backends.multi_view import Averaging
from gmtool_serving.scoring.evaluate import Task
from gmtool_serving.scoring.tasks import data_masks_task, folder_task, masks_task, model_task


def prepare_model(
    backend: Backend, settings: Settings, list_path: Path | None, *, averaging: Averaging | None = None
) -> Task:
    """Return the task of scoring a model on a data set.

    Args:
        backend: A loaded model.
        settings: Settings of the data by dotted name; the others are those of the model's run.
        list_path: Images to score; None for the validation set.
        averaging: Windows, scales and mirror images; None for the whole image once.
    """
    config = _data_config(Path(backend.model), settings)
    split = load_split(config, "val", list_path or config.val, missing_masks=True, option="--list")
    task = model_task(backend, split, values=config.mask_values, averaging=averaging)
    remark(f"model {backend.model}, {backend.description}; {len(split.samples)} images of {split.name}")
    return task


def prepare_folder(
    backend: Backend,
    images: Path,
    ground_truth: Path,
    list_path: Path | None,
    *,
    values: MaskValues | None,
    averaging: Averaging | None = None,
) -> Task:
    """Return the task of scoring a model on a folder of images against a folder of masks of the same names.

    Args:
        backend: A loaded model.
        images: Folder of the images.
        ground_truth: Folder of the masks, of the model's classes.
        list_path: Images to score; None for all with a mask.
        values: Encoding of the masks; None: recognised.
        averaging: Windows, scales and mirror images; None for the whole image once.
    """
    task = folder_task(backend, images, ground_truth, list_path, values=values, averaging=averaging)
    remark(f"model {backend.model}, {backend.description}; {len(task.ids)} images with a mask in {ground_truth}")
    remark(f"ground truth: {task.protocol.truth_values}")
    return task


def prepare_masks(
    predictions: Path | None,
    ground_truth: Path | None,
    list_path: Path | None,
    settings: Settings,
    *,
    classes: str | None,
    values: MaskValues | None,
    prediction_values: MaskValues | None,
    images: Path | None,
) -> Task:
    """Return the task of scoring masks against a folder of ground truth, or against a data set's own.

    Raises:
        UsageError: Not exactly one kind of ground truth, or no classes.
    """
    has_data = "data.root" in settings
    if predictions is None or classes is None or (ground_truth is None) != has_data:
        raise UsageError(
            "scoring masks needs --predictions and --classes, and either --ground-truth DIR or --data DIR; "
            "scoring a model on a folder needs --model, --images DIR and --ground-truth DIR"
        )
    known = load_classes(classes)
    if ground_truth is None:
        if images is not None:
            raise UsageError("--images goes with --ground-truth; a data set has its own images")
        config = build_config(settings).data
        split = load_split(config, "val", list_path or config.val, missing_masks=True, option="--list")
        task = data_masks_task(
            predictions, split, classes=known, values=config.mask_values, prediction_values=prediction_values
        )
    else:
        task = masks_task(
            predictions,
            ground_truth,
            list_path,
            classes=known,
            values=values,
            prediction_values=prediction_values,
            images=images,
        )
    remark(f"ground truth: {task.protocol.truth_values}; {len(task.ids)} images of {task.provenance.split}")
    remark(f"predictions: {task.protocol.prediction_values}")
    return task


def _data_config(model: Path, settings: Settings) -> DataConfig:
    """Return the settings of the data: those asked for, over those of the model's run.

    Of another data set without a named layout, layout and encoding are the run's, and its lists if they lie there
    too; a model without a run reads the layout that is recognised.
    """
    if "data.layout" in settings and "data.root" in settings:
        return build_config(settings).data  # nothing of the run's applies to it
    run = run_of_model(model)
    if "data.root" in settings:
        root = Path(settings["data.root"])
        if run is None:
            return build_config({**settings, "data.layout": recognize_kind(root)[0]}).data
        config = load_run_config(run, settings).data
        return replace(
            config,
            labeled=_if_there(config.labeled),
            unlabeled=_if_there(config.unlabeled),
            val=_if_there(config.val),
        )
    if run is None:
        raise ConfigError(f"{model} does not lie in its run folder: give --data DIR and --layout")
    config = load_run_config(run, settings).data
    refuse_missing_data(
        config, run, remedy=f"give the folder where it is now with --data DIR --layout {config.layout}"
    )
    return config


def _if_there(path: Path | None) -> Path | None:
    return path if path is not None and path.exists() else None
