"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """What is counted, and survives an interruption."""

    iteration: int = 0
    """Optimiser steps done."""
    best_miou: float | None = None
    """None before the first validation, and while no pixel was scored."""
    best_iteration: int = 0
    stale: int = 0
    """Validations since the best one."""
    validated: bool = True
    """False if a validation was due after this step and did not take place."""

    def after_validation(self, miou: float | None) -> tuple[Progress, bool]:
        """Return where the run stands after a validation, and whether it was the best so far."""
        is_best = self.best_iteration == 0 or (miou or 0.0) > (self.best_miou or 0.0)
        if is_best:
            best = replace(self, best_miou=miou, best_iteration=self.iteration, stale=0, validated=True)
            return best, True
        return replace(self, stale=self.stale + 1, validated=True), False
