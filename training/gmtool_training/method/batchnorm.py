"""Batch normalisation that normalises by the batch without remembering it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Normalise by the batch, as in training, without updating the running statistics."""
    tracking = [
        module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def same_statistics_again(network: nn.Module) -> AbstractContextManager[None]:
    """Return a context that computes as the network would now, but leaves the running statistics alone.

    For a second computation of the same activations: it must save the same tensors for the backward pass, and
    running statistics are among them unless they are frozen now.
    """
    tracking = any(module.track_running_stats for module in network.modules() if isinstance(module, _BatchNorm))
    return _unmoved_statistics(network) if tracking else frozen_statistics(network)


@contextmanager
def _unmoved_statistics(network: nn.Module) -> Iterator[None]:
    modules = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [(module.momentum, module.num_batches_tracked) for module in modules]
    counts = [None if count is None else count.clone() for _, count in kept]
    for module in modules:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, (momentum, tracked), count in zip(modules, kept, counts, strict=True):
            module.momentum = momentum
            if tracked is not None and count is not None:
                tracked.copy_(count)


def freeze(part: nn.Module) -> None:
    """Let a part of a network stay as it is, in place: no gradient, and running statistics for a batch's."""
    part.requires_grad_(False).eval()
    part.train = lambda mode=True: part  # type: ignore[method-assign]
