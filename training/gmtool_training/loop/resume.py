"""Save and restore training state, so that a resumed run ends like an uninterrupted one.

Random numbers for data depend only on (seed, epoch, sample) or (seed, step), and the learning rate on the step, so
the number of steps restores them. Saved: weights, their average, the optimiser's state, loss scale, best score,
sums since the last log event, torch's random state, and the settings of the computation, since `config.toml` may
be edited.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gmtool.config import TrainConfig
from gmtool.console import remark
from gmtool.data.datasets import TrainingData
from gmtool.errors import CheckpointError
from gmtool.nn.checkpoint import TrainingState, load_network, load_training_state, resumable_names
from gmtool.nn.model import GuidedMixNet
from gmtool_training.engine.optim import restore_state, state_tensors
from gmtool_training.loop.figures import StepSums
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.loop.resumable import computation, refuse_other_images


@dataclass(frozen=True)
class RunState:
    """State that changes during a run."""

    network: GuidedMixNet
    average: GuidedMixNet | None
    """Moving average of the weights; None without `optim.ema_decay`."""
    optimizer: Optimizer
    scaler: torch.amp.GradScaler | None
    """Loss scaler of 16-mixed; else None."""
    sums: StepSums

    @property
    def saved_network(self) -> GuidedMixNet:
        """Network whose weights are validated, saved and exported."""
        return self.average or self.network


def pack_state(
    state: RunState, progress: TrainingProgress, data: TrainingData, config: TrainConfig
) -> TrainingState:
    """Return the state that `restore` reads, besides the weights of `saved_network`."""
    tensors = state_tensors(state.optimizer)
    if state.average is not None:
        tensors |= {f"network.{name}": value for name, value in state.network.state_dict().items()}
    return TrainingState(
        tensors=tensors | {"sums": state.sums.state(), "random.torch": torch.get_rng_state()},
        values={
            "progress": asdict(progress),
            "scaler": None if state.scaler is None else state.scaler.state_dict(),
            "labeled_sha256": data.labeled.sha256,
            "unlabeled_sha256": data.unlabeled.sha256,
            "val_sha256": data.val.sha256,
            "settings": computation(config),
        },
    )


def restore(run_dir: Path, state: RunState, data: TrainingData) -> TrainingProgress:
    """Load the newest undamaged checkpoint into `state` and return the progress of the run.

    Raises:
        CheckpointError: No checkpoint can be resumed, or all are damaged.
        ConfigError: The images of the run have changed.
    """
    saved, weights = _newest_whole(run_dir)
    refuse_other_images(run_dir, saved.values, data)
    state.saved_network.load_state_dict(weights)
    if state.average is not None:
        state.network.load_state_dict(_below("network.", saved.tensors))
    restore_state(state.optimizer, saved.tensors)
    if state.scaler is not None:
        state.scaler.load_state_dict(saved.values["scaler"])
    state.sums.restore(saved.tensors["sums"])
    torch.set_rng_state(saved.tensors["random.torch"])
    return TrainingProgress(**saved.values["progress"])


def _newest_whole(run_dir: Path) -> tuple[TrainingState, dict[str, Any]]:
    """Return state and weights of the newest undamaged checkpoint; remark damaged ones."""
    problems = []
    for name in resumable_names(run_dir):
        try:
            state = load_training_state(run_dir, name)
            network, checkpoint = load_network(run_dir, name)
        except CheckpointError as error:
            problems.append(error)
            continue
        if checkpoint.iteration != state.values["progress"]["iteration"]:
            problems.append(CheckpointError(f"{run_dir}: weights and state of {name} belong to different steps"))
            continue
        for problem in problems:
            remark(f"warning: {problem}: resuming from the previous checkpoint, of step {checkpoint.iteration}")
        return state, network.state_dict()
    raise problems[0]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
