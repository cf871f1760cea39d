"""Sums of loss terms and gradient norms on the device, read without blocking the next step.

Steps with a non-finite gradient are counted, and skipped by the optimiser without waiting for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from gmtool_training.method.losses import StepLosses

TERMS = ("loss", "ce", "cla", "dec", "usup", "grad_norm")


@dataclass(frozen=True)
class LoggedMeans:
    """Mean figures of the steps since the last log event."""

    means: dict[str, float | None]
    """Mean of each of `TERMS` over the steps that were not skipped; None if all were skipped."""
    skipped: int
    """Skipped steps since the run began."""
    skipped_in_a_row: int
    """Skipped steps in a row up to now."""


class StepSums:
    """Sums of the loss terms and counts of steps, on one device."""

    def __init__(self, device: torch.device) -> None:
        # Sums of the terms, steps in them, skipped steps, skipped steps in a row
        self._counts = torch.zeros(len(TERMS) + 3, device=device)

    def add(self, losses: StepLosses, gradients: Iterable[Tensor], *, loss_scale: Tensor) -> Tensor:
        """Add a step; return 1.0 if its update must be skipped, else 0.0, on the device.

        Args:
            losses: Losses of the step.
            gradients: Gradients of the step, times `loss_scale`.
            loss_scale: Factor of the loss in the backward pass (1 unless precision is 16-mixed).
        """
        norm = get_total_norm(list(gradients))
        finite = norm.isfinite()
        terms = torch.stack(
            [
                losses.total,
                losses.cross_entropy,
                losses.classification,
                losses.labeled_decoupling,
                losses.unlabeled,
                norm / loss_scale,
            ]
        )
        count = len(TERMS)
        self._counts[:count] += torch.where(finite, terms.float(), 0.0)
        self._counts[count] += finite
        self._counts[count + 1] += ~finite
        self._counts[count + 2] = torch.where(finite, 0.0, self._counts[count + 2] + 1)
        return (~finite).float()

    def start_interval(self) -> Callable[[], LoggedMeans]:
        """Start a new interval; return a function that waits for the means of the old one.

        Call it after the next step has been launched, so that the device works while it waits.
        """
        on_gpu = self._counts.is_cuda
        values = self._counts.to("cpu", non_blocking=on_gpu, copy=True)
        copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        if copied is not None:
            copied.record()
        self._counts[: len(TERMS) + 1] = 0

        def read() -> LoggedMeans:
            if copied is not None:
                copied.synchronize()
            *sums, steps, skipped, in_a_row = values.tolist()
            means = {name: total / steps if steps else None for name, total in zip(TERMS, sums, strict=True)}
            finite = {name: mean if mean is None or math.isfinite(mean) else None for name, mean in means.items()}
            return LoggedMeans(finite, int(skipped), int(in_a_row))

        return read

    def state(self) -> Tensor:
        """Return the sums and counts, for a checkpoint."""
        return self._counts.clone()

    def restore(self, state: Tensor) -> None:
        """Restore sums and counts from a checkpoint."""
        self._counts.copy_(state)
