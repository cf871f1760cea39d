"""Demands of a run's last checkpoint on the settings and images that it is resumed with. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmtool.artifact.checkpoints import Checkpoint, checked_file, read_checkpoint, resumable_names
from gmtool.artifact.run_config import load_run_config, refuse_missing_data
from gmtool.artifact.runs import CHECKPOINT_DIR, CONFIG_NAME
from gmtool.classes import ClassSet
from gmtool.config import TrainConfig
from gmtool.errors import CheckpointError, ConfigError
from gmtool.settings import Settings
from gmtool_training.loop.checks import find_data, refuse_missing_teacher
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.watch.open_tracker import refuse_missing_tracker

if TYPE_CHECKING:
    from gmtool.data.datasets import TrainingData

MOVED = "give the folder where it is now with --data DIR"
FREE_SETTINGS = frozenset(
    (
        # Images are compared by the hash of their ids; classes come from the checkpoint
        *(f"data.{name}" for name in ("root", "labeled", "unlabeled", "val", "classes")),
        *(f"data.{name}" for name in ("workers", "cache")),
        "optim.iterations",
        *(
            f"run.{name}"
            for name in ("device", "compile", "channels_last", "activation_checkpointing", "cuda_graph")
        ),
        *(f"run.{name}" for name in ("log_every", "validations", "save_every", "save_state", "keep_last")),
        *(f"run.{name}" for name in ("patience", "max_skipped", "val_limit", "tracker")),
    )
)
"""Settings that may change when a run is resumed: the computation of a step does not depend on them."""


def check_resume(run_dir: Path, changes: Settings) -> TrainConfig:
    """Return the settings of a run with changes, if it can be resumed with them.

    Raises:
        CheckpointError: `run_dir` is not a run, or all its checkpoints are damaged.
        ConfigError: A setting changed that is not free, the images have changed, or the run is finished.
        DataError: Images cannot be found.
    """
    if not (run_dir / CONFIG_NAME).is_file():
        raise CheckpointError(f"{run_dir} is not a run: expected {run_dir / CONFIG_NAME}")
    config = load_run_config(run_dir, changes)
    refuse_missing_tracker(config.run.tracker)
    if config.method.name == "probe":
        refuse_finished_probe(run_dir)
        refuse_missing_data(config.data, run_dir, remedy=MOVED)
        return config
    refuse_no_checkpoint(run_dir)
    refuse_other_computation(run_dir, config)
    refuse_finished(run_dir, config)
    refuse_missing_teacher(config.method.teacher_run)
    refuse_missing_data(config.data, run_dir, remedy=MOVED)
    if config.data.layout != "coco":  # reading the annotations takes as long as importing torch
        refuse_other_images(run_dir, _newest_description(run_dir).training, find_data(config))
    return config


def refuse_finished_probe(run_dir: Path) -> None:
    """Raise `ConfigError` if the probe of a run was saved: there is nothing to go on with."""
    if (run_dir / CHECKPOINT_DIR / "last.json").is_file():
        raise ConfigError(f"{run_dir} is finished: its method is the probe, which is fitted once")


def refuse_finished(run_dir: Path, config: TrainConfig) -> None:
    """Raise `ConfigError` if all steps of a run are done, or it was stopped early, and its last weights are whole.

    If they are damaged, training goes on from the checkpoint before.
    """
    last = _newest_description(run_dir)
    if last.training is None or last.state is None or last.state_sha256 is None:
        return
    progress = TrainingProgress(**last.training["progress"])
    if not progress.is_over(iterations=config.optim.iterations, patience=config.run.patience):
        return
    description = run_dir / CHECKPOINT_DIR / "last.json"
    try:
        checked_file(description, last.weights, last.sha256)
        checked_file(description, last.state, last.state_sha256)
    except CheckpointError:
        return
    raise finished(run_dir, progress, config)


def finished(run_dir: Path, progress: TrainingProgress, config: TrainConfig) -> ConfigError:
    """Return the error of a run that is to be resumed, but is finished."""
    done = f"{run_dir} is finished: {progress.iteration} of {config.optim.iterations} iterations are done"
    if progress.iteration < config.optim.iterations:
        return ConfigError(
            f"{done}, stopped early since {progress.stale} validations brought no better score: "
            "--set run.patience=N with a larger N trains it further"
        )
    return ConfigError(f"{done}; --iterations N trains it further, up to N")


def refuse_other_images(run_dir: Path, saved: Mapping[str, Any] | None, data: TrainingData) -> None:
    """Raise `ConfigError` if the images are not those that the run began with."""
    if saved is None:  # `restore` says that there is no state to go on from
        return
    for name, split in (("labeled", data.labeled), ("unlabeled", data.unlabeled), ("val", data.val)):
        if saved[f"{name}_sha256"] != split.sha256:
            raise ConfigError(
                f"the {name} images of {run_dir} have changed since it began: put them back, or start a new run "
                f"from its weights with gmtool train ... --init {run_dir}"
            )


def saved_classes(run_dir: Path) -> ClassSet:
    """Return the classes of a run, from its newest checkpoint.

    Raises:
        CheckpointError: The run has no checkpoint, or all are damaged.
    """
    return _newest_description(run_dir).classes


def refuse_other_computation(run_dir: Path, config: TrainConfig) -> None:
    """Raise `ConfigError` if a setting that the computation depends on differs from the run's checkpoints.

    Raises:
        CheckpointError: The run has no checkpoint, or all are damaged.
    """
    training = _newest_description(run_dir).training
    if training is None:  # `restore` says that there is no state to go on from
        return
    saved = training["settings"]
    changed = [
        f"{name} was {saved[name]}, is {value}"
        for name, value in computation(config).items()
        if name in saved and saved[name] != value
    ]
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise ConfigError(
            f"{run_dir} began with other settings: {'; '.join(changed[:3])}{more}: the computation depends on "
            f"that: leave the option out or restore {CONFIG_NAME}, or start a new run from its weights with "
            f"--init {run_dir}"
        )


def computation(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that the computation depends on by dotted name, as JSON values."""
    tree: dict[str, dict[str, Any]] = json.loads(json.dumps(asdict(config), default=str))
    names = {f"{section}.{name}": value for section, table in tree.items() for name, value in table.items()}
    return {name: value for name, value in names.items() if name not in FREE_SETTINGS}


def _newest_description(run_dir: Path) -> Checkpoint:
    """Return the newest undamaged description of a checkpoint."""
    problems = []
    for name in resumable_names(run_dir):
        try:
            return read_checkpoint(run_dir, name)
        except CheckpointError as error:
            problems.append(error)
    raise problems[0]


def refuse_no_checkpoint(run_dir: Path) -> None:
    if not any((run_dir / CHECKPOINT_DIR).glob("*.json")):
        raise CheckpointError(f"{run_dir} was stopped before its first checkpoint: there is nothing to resume")
