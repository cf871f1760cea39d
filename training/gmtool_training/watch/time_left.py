"""Estimate of the time that a run still takes: steps with and without unlabeled images, and validations."""

from __future__ import annotations

from collections import deque

REMEMBERED = 100
"""Steps and validations whose mean time counts."""
MAX_FIRST_RATIO = 3.0
"""Time of the first step with unlabeled images at most, as a multiple of what was expected."""


class TimeLeft:
    """Mean times of what a run consists of.

    Args:
        iterations: Steps of the run.
        unlabeled_from: First step with unlabeled images.
        validations: Validations of the run, evenly spaced.
        unlabeled_cost: Time of a step with unlabeled images, as a multiple of one without; until one is measured.
        validation_cost: Time of a validation, in steps without unlabeled images; until one is measured.
        whole_cost: Time of the last validation, of all images, as a multiple of the others.
    """

    def __init__(
        self,
        *,
        iterations: int,
        unlabeled_from: int,
        validations: int,
        unlabeled_cost: float,
        validation_cost: float = 0.0,
        whole_cost: float = 1.0,
    ) -> None:
        self._iterations, self._validations = iterations, validations
        self._unlabeled_from = min(unlabeled_from, iterations)
        self._unlabeled_cost, self._validation_cost, self._whole_cost = unlabeled_cost, validation_cost, whole_cost
        self._steps: dict[bool, deque[float]] = {kind: deque(maxlen=REMEMBERED) for kind in (False, True)}
        self._first: dict[bool, float] = {}
        self._validation_times: deque[float] = deque(maxlen=REMEMBERED)

    def add_step(self, done: int, seconds: float) -> None:
        """Note the time of the step after which `done` are done.

        The first one, which starts everything, counts only until there is another. So does the first one with
        unlabeled images, for which torch.compile translates the network anew, and only up to `MAX_FIRST_RATIO`.
        """
        kind = done > self._unlabeled_from
        if kind in self._first:
            self._steps[kind].append(seconds)
        else:
            self._first[kind] = seconds

    def add_validation(self, seconds: float) -> None:
        """Note the time of a validation, with saving and drawing."""
        self._validation_times.append(seconds)

    def seconds(self, done: int) -> float | None:
        """Return the seconds left after `done` steps; None before the first step."""
        labeled, unlabeled = (_mean(self._steps[kind]) for kind in (False, True))
        labeled = self._first.get(False) if labeled is None and unlabeled is None else labeled
        if unlabeled is None:
            unlabeled = self._first.get(True)
            if labeled is not None:
                expected = labeled * self._unlabeled_cost
                unlabeled = expected if unlabeled is None else min(unlabeled, MAX_FIRST_RATIO * expected)
        if unlabeled is None:
            return None
        if labeled is None:
            labeled = unlabeled / self._unlabeled_cost
        first = self._unlabeled_from
        steps = labeled * max(0, first - done) + unlabeled * (self._iterations - max(first, done))
        validations = float(self._validations - done * self._validations // self._iterations)
        if validations:
            validations += self._whole_cost - 1
        validation = _mean(self._validation_times)
        return steps + validations * (labeled * self._validation_cost if validation is None else validation)


def _mean(values: deque[float]) -> float | None:
    return sum(values) / len(values) if values else None
