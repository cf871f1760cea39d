"""Cost of a training step in forward passes, to compare methods within one budget of compute."""

from __future__ import annotations

from gmtool.config import DataConfig, MethodConfig

FORWARD, FORWARD_AND_BACKWARD = 1, 3
"""A backward pass costs about two forward passes."""


def step_cost(method: MethodConfig, data: DataConfig) -> float:
    """Return the cost of a step after warm-up, in forward passes of the labeled half of its batch.

    A step in warm-up, and a supervised one, costs 3.
    """
    cost: float = FORWARD_AND_BACKWARD
    if method.name == "supervised":
        return cost
    if method.labeled_decoupling:
        cost += FORWARD_AND_BACKWARD
    unlabeled = data.unlabeled_batch / data.labeled_batch
    cost += FORWARD_AND_BACKWARD * unlabeled  # the view with gradient
    if method.pseudo != "direct":
        # The mixed images; with gradient unless the pseudo mask is detached
        cost += (FORWARD if method.detach == "pseudo" else FORWARD_AND_BACKWARD) * unlabeled
        if method.teacher == "average":
            cost += FORWARD  # the teacher's forward of the labeled images
    has_own_prediction = method.view == "weak" and method.teacher == "student"
    if not has_own_prediction and (method.pseudo == "direct" or method.pairing == "similar"):
        cost += FORWARD * unlabeled  # the teacher's forward of the unlabeled images
    return cost


def iterations_within(budget: float, method: MethodConfig, data: DataConfig) -> int:
    """Return the number of steps within a budget of forward passes, with warm-up; at least 1."""
    warmup = 1.0 if method.name == "supervised" else method.warmup_fraction
    mean = warmup * FORWARD_AND_BACKWARD + (1 - warmup) * step_cost(method, data)
    return max(1, int(budget / mean))
