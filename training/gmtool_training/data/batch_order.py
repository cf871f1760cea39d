"""Order of the training images, a function of the seed and the batch number only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from gmtool.config import DataConfig
from gmtool.data.samples import Sample

Key = tuple[int, int]
"""(epoch, index of the sample)"""

Stream = Literal["labeled", "unlabeled"]
STREAMS: dict[Stream, int] = {"labeled": 1, "unlabeled": 2}
"""Seed offset of each stream: both are drawn from one seed, independently."""


class EndlessBatches(Sampler[list[Key]]):
    """Endless batches of successive permutations of the samples; the n-th depends only on the seed and n.

    Args:
        num_samples: Samples in an epoch.
        seed: Seed of the permutations.
        batch: Samples in a batch.
        start: Number of batches to skip.
        share: (i, n): the i-th of n equal parts of each batch, for the i-th of n processes.
    """

    def __init__(
        self,
        num_samples: int,
        seed: Sequence[int],
        *,
        batch: int,
        start: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.num_samples, self.seed, self.batch, self.start, self.share = num_samples, seed, batch, start, share

    def __iter__(self) -> Iterator[list[Key]]:
        keys = self._keys()
        index, processes = self.share
        size = self.batch // processes
        while True:
            yield list(islice(keys, self.batch))[index * size : (index + 1) * size]

    def _keys(self) -> Iterator[Key]:
        first_epoch, skipped = divmod(self.start * self.batch, self.num_samples)
        for epoch in count(first_epoch):
            order = np.random.default_rng([*self.seed, epoch]).permutation(self.num_samples)
            yield from ((epoch, int(index)) for index in order[skipped:])
            skipped = 0


def ids_in_batch(
    labeled: Sequence[Sample],
    unlabeled: Sequence[Sample] | None,
    config: DataConfig,
    *,
    seed: int,
    number: int,
    unlabeled_number: int,
) -> list[str]:
    """Return the ids of the images of a step, for messages.

    Args:
        labeled: Labeled samples.
        unlabeled: Unlabeled samples; None for supervised training.
        config: Sizes of the batches.
        seed: Seed of the run.
        number: Number of the labeled batch, from 0.
        unlabeled_number: Number of the unlabeled batch; below 0 in warm-up.
    """
    keys = next(iter(batch_order("labeled", labeled, config, seed=seed, start=number)))
    ids = [labeled[index].id for _, index in keys]
    if unlabeled is not None and unlabeled_number >= 0:
        keys = next(iter(batch_order("unlabeled", unlabeled, config, seed=seed, start=unlabeled_number)))
        ids += [unlabeled[index].id for _, index in keys]
    return ids


def batch_order(
    stream: Stream,
    samples: Sequence[Sample],
    config: DataConfig,
    *,
    seed: int,
    start: int,
    share: tuple[int, int] = (0, 1),
) -> EndlessBatches:
    """Return the order of a stream's images from batch `start` on; `share` as in `EndlessBatches`."""
    batch = config.labeled_batch if stream == "labeled" else config.unlabeled_batch
    return EndlessBatches(len(samples), [seed, STREAMS[stream]], batch=batch, start=start, share=share)
