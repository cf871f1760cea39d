"""Gradient accumulation: a step computed in parts of its batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gmtool_training.data.batches import LabeledBatch
from gmtool_training.engine.machine import Machine, average_over_processes
from gmtool_training.method.losses import StepLosses, mean_losses
from gmtool_training.method.step import Step, StepInput


def propagate(machine: Machine, network: nn.Module, step: Step, inputs: Sequence[StepInput]) -> StepLosses:
    """Compute the losses of a step part by part; accumulate the gradient of their mean in the network.

    Args:
        machine: Device, precision and processes.
        network: Network in training, without gradients.
        step: Computes and propagates the losses of a part.
        inputs: Parts of this process's share of the batch, from `split_batch`.

    Returns:
        Mean of each loss term over parts and processes.
    """
    parts = len(inputs)

    def backward(loss: Tensor) -> None:
        machine.backward(loss / parts if parts > 1 else loss)

    losses = mean_losses([step(network, part, backward) for part in inputs])
    average_over_processes(machine, network)
    if machine.processes == 1:
        return losses
    terms = torch.stack([losses.cross_entropy, losses.classification, losses.labeled_decoupling, losses.unlabeled])
    ce, cla, dec, usup = machine.mean(terms).unbind()
    return StepLosses(ce, cla, dec, usup, losses.omega)


def split_batch(machine: Machine, inputs: StepInput, *, parts: int, ignore_index: int) -> list[StepInput]:
    """Split a process's share of a batch into equal parts whose mean loss equals that of the whole batch.

    The cross-entropy is a mean over pixels that are not ignored. Since their number differs between parts, each
    part divides by the number of the whole batch over the number of parts of all processes.
    """
    if parts == 1 and machine.processes == 1:
        return [inputs]
    scored = (inputs.labeled.masks != ignore_index).sum().float()
    scored = machine.sum(scored).clamp(min=1)
    images, masks = (value.chunk(parts) for value in inputs.labeled)
    unlabeled = [None] * parts if inputs.unlabeled is None else inputs.unlabeled.chunk(parts)
    inside = [None] * parts if inputs.inside is None else inputs.inside.chunk(parts)
    first = machine.rank * parts
    random = inputs.random.spawn(parts * machine.processes)[first : first + parts]
    return [
        replace(
            inputs,
            labeled=LabeledBatch(images[part], masks[part]),
            unlabeled=unlabeled[part],
            inside=inside[part],
            scored_pixels=scored / (parts * machine.processes),
            random=random[part],
        )
        for part in range(parts)
    ]
