"""Batch normalisation with batch statistics, without updates of the running statistics."""

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
    """Return a context for recomputing activations: as in the first pass, without updating the running statistics.

    The recomputation must save the same tensors for the backward pass, which include the running statistics unless
    they are frozen.
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
    """Freeze a part of a network in place: no gradient, running statistics instead of batch statistics."""
    part.requires_grad_(False).eval()
    part.train = lambda mode=True: part  # type: ignore[method-assign]
