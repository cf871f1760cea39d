"""Schedule of a run in steps: length, logging, validation, saving, early stopping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gmtool.classes import ClassSet
from gmtool.config import TrainConfig
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.method.losses import omega_at


@dataclass(frozen=True)
class FitSchedule:
    """Length of a run and intervals of logging, validation and saving, in steps."""

    iterations: int
    """Optimiser steps of the run."""
    unlabeled_from: int
    """First step with unlabeled images; `iterations`: none."""
    omega_at: Callable[[int], float]
    """Weight of the unlabeled loss by step."""
    seed: int
    accumulation: int
    """Parts of a process's share of a batch, computed one after another."""
    ignore_index: int
    log_every: int
    validations: int
    save_every: int
    patience: int | None
    """Validations without a better score after which training ends; None: no early stopping."""
    max_skipped: int
    """Consecutive steps that may have a non-finite gradient."""
    channels_last: bool

    def is_saved(self, done: int) -> bool:
        """Return whether the last checkpoint is saved after `done` steps, apart from validations."""
        return done % self.save_every == 0

    def is_logged(self, done: int) -> bool:
        """Return whether figures are logged after `done` steps."""
        return done % self.log_every == 0 or done in (1, self.iterations)

    def is_validated(self, done: int) -> bool:
        """Return whether validation follows `done` steps: evenly spaced, the last after the last step."""
        number = done * self.validations // self.iterations
        return number > (done - 1) * self.validations // self.iterations

    def is_over(self, progress: TrainingProgress) -> bool:
        """Return whether the run is finished: all steps done, or stopped early, and validated."""
        return progress.is_over(iterations=self.iterations, patience=self.patience)


def build_schedule(config: TrainConfig, classes: ClassSet) -> FitSchedule:
    """Return the schedule of a configuration, in steps."""
    iterations, method, run = config.optim.iterations, config.method, config.run
    supervised = method.name == "supervised"
    warmup = iterations if supervised else round(method.warmup_fraction * iterations)
    return FitSchedule(
        iterations=iterations,
        unlabeled_from=warmup,
        omega_at=partial(
            omega_at,
            iterations=iterations,
            warmup=warmup,
            ramp_fraction=method.ramp_fraction,
            omega_max=method.omega_max,
        ),
        seed=run.seed,
        accumulation=config.optim.accumulation,
        ignore_index=classes.ignore_index,
        log_every=run.log_every,
        validations=min(run.validations, iterations),
        save_every=run.save_every,
        patience=run.patience,
        max_skipped=run.max_skipped,
        channels_last=bool(run.channels_last),
    )
