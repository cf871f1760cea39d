"""Too little memory for a training step, as one line with what makes a step smaller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gmtool.config import TrainConfig
from gmtool.errors import BackendMemoryError

CPU_WORDS = "can't allocate memory"
"""Words in torch's message when a processor's memory ran out; it has no error type for that."""


@contextmanager
def explained_memory(config: TrainConfig) -> Iterator[None]:
    """Turn torch's errors about memory into one line with a remedy.

    Raises:
        BackendMemoryError: The device or the machine has too little memory for a step.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BackendMemoryError(_line("the GPU", config)) from error
    except RuntimeError as error:
        if CPU_WORDS not in str(error):
            raise
        raise BackendMemoryError(_line("this machine", config)) from error


def _line(place: str, config: TrainConfig) -> str:
    data, parts = config.data, config.optim.accumulation
    batch = data.labeled_batch + (0 if config.method.name == "supervised" else data.unlabeled_batch)
    remedies = []
    if min(data.labeled_batch, data.unlabeled_batch) >= 4 * parts:
        remedies.append(
            f"--set optim.accumulation={2 * parts} (the same step in {2 * parts} parts, activations of one)"
        )
    if not config.run.activation_checkpointing:
        remedies.append("--set run.activation_checkpointing=true (most activations are computed twice, not kept)")
    if data.kept_crops > 1:
        remedies.append(f"--set data.kept_crops={data.kept_crops // 2} (features of half as many crops are kept)")
    smaller = max(8, data.crop_px * 3 // 4)
    remedies.append(
        f"--set data.crop_px={smaller} (activations of {(smaller / data.crop_px) ** 2:.0%} of the pixels)"
    )
    return (
        f"{place} has too little memory for a step of {batch} crops of {data.crop_px}x{data.crop_px} pixels in "
        f"{config.run.precision}: {', or '.join(remedies)}"
    )
