"""What steps gave, summed on the device: reading it is the only thing that waits for the device.

Steps whose gradient is not finite are counted here, and the optimiser is told, on the device, to skip them.
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
class Reading:
    """What the steps since the reading before gave."""

    means: dict[str, float | None]
    """Mean of each of `TERMS` over the steps that were not skipped; None if all were."""
    skipped: int
    """Skipped steps since the run began."""
    skipped_in_a_row: int
    """Skipped steps up to now."""


class Tally:
    """Sums and counts on one device."""

    def __init__(self, device: torch.device) -> None:
        # Sums of the terms, steps in them, skipped steps, skipped steps in a row
        self._counts = torch.zeros(len(TERMS) + 3, device=device)

    def add(self, losses: StepLosses, gradients: Iterable[Tensor], *, loss_scale: Tensor) -> Tensor:
        """Count a step; return whether its update must be skipped: 1.0 or 0.0, on the device.

        Args:
            losses: Of the step.
            gradients: Of the step, times `loss_scale`.
            loss_scale: What the loss was multiplied with before it was propagated.
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

    def start_reading(self) -> Callable[[], Reading]:
        """Begin a new interval; return a function that waits until the old one is known.

        Called once the next step has been handed to the device, the function waits while the device works.
        """
        on_gpu = self._counts.is_cuda
        values = self._counts.to("cpu", non_blocking=on_gpu, copy=True)
        copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        if copied is not None:
            copied.record()
        self._counts[: len(TERMS) + 1] = 0

        def read() -> Reading:
            if copied is not None:
                copied.synchronize()
            *sums, steps, skipped, in_a_row = values.tolist()
            means = {name: total / steps if steps else None for name, total in zip(TERMS, sums, strict=True)}
            finite = {name: mean if mean is None or math.isfinite(mean) else None for name, mean in means.items()}
            return Reading(finite, int(skipped), int(in_a_row))

        return read

    def state(self) -> Tensor:
        """Return everything counted so far, for a checkpoint."""
        return self._counts.clone()

    def restore(self, state: Tensor) -> None:
        """Go on from a state."""
        self._counts.copy_(state)
