"""Checks of a run's settings, paths and lists that need no torch, so that a mistake is answered at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gmtool.artifact.checkpoints import read_checkpoint, refuse_foreign_classes
from gmtool.artifact.lookup import find_checkpoint
from gmtool.classes import ClassSet, load_classes
from gmtool.config import DataConfig, TrainConfig
from gmtool.data.splits import read_split
from gmtool.errors import CheckpointError, ConfigError, DataError
from gmtool_training.watch.open_tracker import refuse_missing_tracker

if TYPE_CHECKING:
    from gmtool.data.datasets import TrainingData


def check_settings(config: TrainConfig, *, makes_data: bool) -> None:
    """Check what can be checked before torch is imported.

    Args:
        config: Settings of the run.
        makes_data: The data set is generated or downloaded first, so that its files are not looked for.

    Raises:
        GmtoolError: A file, list or run is missing, validation overlaps with training, nothing is unlabeled, or a
            batch cannot be divided.
    """
    refuse_undividable_batches(config, processes=int(os.environ.get("WORLD_SIZE", "1")))
    _refuse_missing_weights(config.model.encoder_weights)
    refuse_missing_tracker(config.run.tracker)
    if makes_data:
        refuse_missing_teacher(config.method.teacher_run)
        _refuse_missing_files_elsewhere(config.data)
        return
    _refuse_missing_paths(config.data)
    refuse_missing_teacher(config.method.teacher_run, load_classes(config.data.classes))
    if config.data.layout != "coco":  # reading the annotations takes as long as importing torch
        find_data(config)


def find_data(config: TrainConfig) -> TrainingData:
    """Return the images of a run.

    Raises:
        DataError: A folder, list, image or mask is missing, or validation overlaps with training.
        ConfigError: The method needs unlabeled images, and there are none.
    """
    from gmtool.data.datasets import load_training_data

    data = load_training_data(config.data)
    if config.method.name == "guidedmix" and not data.unlabeled.samples:
        raise ConfigError(
            f"no unlabeled images: all {len(data.labeled.samples)} of {data.labeled.name} are labeled; give a "
            "shorter list with --labels, others with --unlabeled, or --set method.name=supervised"
        )
    return data


def refuse_undividable_batches(config: TrainConfig, *, processes: int) -> None:
    """Raise `ConfigError` if a batch cannot be divided among the processes and parts of a step."""
    parts = processes * config.optim.accumulation
    for name, batch in (("labeled", config.data.labeled_batch), ("unlabeled", config.data.unlabeled_batch)):
        if batch % parts or batch < 2 * parts:
            raise ConfigError(
                f"data.{name}_batch={batch} must be divisible: {processes} processes times "
                f"optim.accumulation={config.optim.accumulation} need a multiple of {parts}, at least {2 * parts}"
            )


def refuse_missing_teacher(source: str | None, classes: ClassSet | None = None) -> None:
    """Raise `CheckpointError` if the run that predicts pseudo masks is missing, or knows none of the classes."""
    if source is None:
        return
    teacher = read_checkpoint(*find_checkpoint(source, None)).classes
    if classes is not None:
        refuse_foreign_classes(source, teacher, classes)


def _refuse_missing_files_elsewhere(data: DataConfig) -> None:
    """Refuse lists and classes that are missing, unless they come with the data set that is still to be made."""
    root = data.root.absolute()
    for path in (data.labeled, data.unlabeled, data.val):
        if path is not None and not path.is_dir() and not path.absolute().is_relative_to(root):
            read_split(path)
    if not Path(data.classes).absolute().is_relative_to(root):
        load_classes(data.classes)


def _refuse_missing_paths(data: DataConfig) -> None:
    """Refuse folders and lists that are missing or empty, before anything is imported to read images."""
    if not data.root.is_dir():
        raise DataError(f"data set folder {data.root} does not exist")
    for path in (data.labeled, data.unlabeled, data.val):
        if path is not None and not path.is_dir():
            read_split(path)


def _refuse_missing_weights(named: str) -> None:
    if named not in ("imagenet", "none") and not Path(named).exists():
        raise CheckpointError(
            f"encoder weights {named}: no such file; expected imagenet, none, a file or a run folder"
        )
