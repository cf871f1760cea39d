"""Activation checkpointing: recompute activations in the backward pass to save memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch.utils.checkpoint import checkpoint

from gmtool.nn.model import GuidedMixNet
from gmtool_training.method.batchnorm import same_statistics_again


def recompute_activations(network: GuidedMixNet) -> None:
    """Checkpoint each stage of the network in place: only its input is stored.

    The recomputation uses batch statistics like the first pass, without updating the running statistics.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), same_statistics_again(network)

    for stage in network.stages:
        # On the instance, to keep the names in the state dict. No random state, since stages have no randomness
        stage.forward = partial(
            checkpoint, stage.forward, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
        )
