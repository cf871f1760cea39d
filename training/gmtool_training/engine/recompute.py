"""Trading time for memory: activations that are computed again in the backward pass instead of kept."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch.utils.checkpoint import checkpoint

from gmtool.nn.model import GuidedMixNet
from gmtool_training.method.batchnorm import same_statistics_again


def recompute_activations(network: GuidedMixNet) -> None:
    """Let each stage of the network keep its input alone, in place; the rest is computed again when needed.

    The second computation normalises by the batch, like the first, but leaves the running statistics alone.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), same_statistics_again(network)

    for stage in network.stages:
        # On the instance: names in the state dict stay. Nothing is random inside, so no state is kept
        stage.forward = partial(
            checkpoint, stage.forward, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
        )
