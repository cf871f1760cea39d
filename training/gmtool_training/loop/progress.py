"""Progress of a run: steps done, best score, early stopping."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TrainingProgress:
    """Counters of a run, kept in its checkpoints."""

    iteration: int = 0
    """Optimiser steps done."""
    best_miou: float | None = None
    """Best validation mIoU in [0, 1]; None before the first validation, or if no pixel was scored."""
    best_iteration: int = 0
    """Steps done at the best validation; 0: none yet."""
    stale: int = 0
    """Validations since the best one."""
    validated: bool = True
    """False if the validation after this step is still to be done."""

    def after_validation(self, miou: float | None) -> tuple[TrainingProgress, bool]:
        """Return the progress after a validation with this mIoU, and whether it is the best so far."""
        is_best = self.best_iteration == 0 or (miou or 0.0) > (self.best_miou or 0.0)
        if is_best:
            best = replace(self, best_miou=miou, best_iteration=self.iteration, stale=0, validated=True)
            return best, True
        return replace(self, stale=self.stale + 1, validated=True), False

    def is_over(self, *, iterations: int, patience: int | None) -> bool:
        """Return whether a run of this length is finished: all steps done, or stopped early, and validated."""
        stale = patience is not None and self.stale >= patience
        return (self.iteration >= iterations or stale) and self.validated
