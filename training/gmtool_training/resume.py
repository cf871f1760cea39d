"""Going on with a run as if it had never stopped: what is kept for that, and how it is put back.

Every draw that touches data depends on (seed, epoch, sample) or (seed, step) alone, so the number of steps done
says where all of them stand. What is left: weights, momentum, the schedule, the best score, torch's random state.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gmtool.datasets import TrainingData
from gmtool.errors import CheckpointError, ConfigError
from gmtool.nn.checkpoint import TrainingState, load_network, load_training_state
from gmtool.nn.model import GuidedMixNet


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    iteration: int = 0
    """Optimiser steps done."""
    best_miou: float | None = None
    """None before the first validation, and while no pixel was scored."""
    best_iteration: int = 0
    validated: bool = True
    """False if a validation was due after this step and did not take place."""


def pack_state(
    progress: Progress, optimizer: Optimizer, schedule: LRScheduler, data: TrainingData
) -> TrainingState:
    """Return what `restore` needs, beside the weights."""
    momentum = {
        f"momentum.{index}": state["momentum_buffer"]
        for index, state in optimizer.state_dict()["state"].items()
        if state["momentum_buffer"] is not None
    }
    return TrainingState(
        tensors={**momentum, "random.torch": torch.get_rng_state()},
        values={
            "progress": asdict(progress),
            "schedule": schedule.state_dict(),
            "labeled_sha256": data.labeled.sha256,
            "unlabeled_sha256": data.unlabeled.sha256,
        },
    )


def restore(
    run_dir: Path,
    network: GuidedMixNet,
    optimizer: Optimizer,
    schedule: LRScheduler,
    data: TrainingData,
    *,
    iterations: int,
) -> Progress:
    """Put a run's last checkpoint back and return where the run stands.

    Raises:
        CheckpointError: There is no checkpoint to go on from, or it is damaged.
        ConfigError: The run is finished, or its lists have changed.
    """
    state = load_training_state(run_dir)
    progress = Progress(**state.values["progress"])
    if progress.iteration >= iterations and progress.validated:
        raise ConfigError(f"{run_dir} is finished: all {iterations} iterations are done")
    for name, split in (("labeled", data.labeled), ("unlabeled", data.unlabeled)):
        if state.values[f"{name}_sha256"] != split.sha256:
            raise ConfigError(f"the {name} images of {run_dir} have changed since it began: train anew")
    saved, checkpoint = load_network(run_dir, "last")
    if checkpoint.iteration != progress.iteration:
        raise CheckpointError(f"{run_dir}: weights and training state are of different steps: train anew")
    network.load_state_dict(saved.state_dict())
    optimizer_state = optimizer.state_dict()
    optimizer_state["state"] = {
        int(name.removeprefix("momentum.")): {"momentum_buffer": value}
        for name, value in state.tensors.items()
        if name.startswith("momentum.")
    }
    optimizer.load_state_dict(optimizer_state)
    schedule.load_state_dict(state.values["schedule"])
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
    torch.set_rng_state(state.tensors["random.torch"])
    return progress
