"""Batches for training: labeled and unlabeled images drawn independently, each draw from (seed, epoch, image)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.errors import DataError
from gmtool.images import UInt8Array, read_image
from gmtool.samples import Sample
from gmtool.truth import read_truth
from gmtool_training.augment import CropWindow, crop_image, crop_mask, draw_window

Key = tuple[int, int]
"""(epoch, index of the sample)"""


class LabeledBatch(NamedTuple):
    """Labeled crops."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB."""
    masks: Tensor
    """(B, H, W) uint8: class indices, and the ignore index."""


@dataclass(frozen=True)
class LabeledCrops(Dataset[tuple[Tensor, Tensor] | DataError]):
    """Random crops of labeled images with their masks: (3, H, W) and (H, W), uint8."""

    samples: Sequence[Sample]
    classes: ClassSet
    config: DataConfig
    seed: int

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | DataError:
        try:
            image, mask = read_labeled(self.samples[key[1]], self.classes, self.config)
        except DataError as error:
            return error  # raised in the training process: see _stack
        window = _window(image, self.config, [self.seed, 1, *key])
        cropped_mask = crop_mask(mask, window, ignore_index=self.classes.ignore_index)
        return _to_chw(crop_image(image, window)), torch.from_numpy(cropped_mask)


@dataclass(frozen=True)
class UnlabeledCrops(Dataset[Tensor | DataError]):
    """Random crops of images, (3, H, W) uint8. No mask is opened, even where one exists."""

    samples: Sequence[Sample]
    config: DataConfig
    seed: int

    def __getitem__(self, key: Key) -> Tensor | DataError:
        try:
            image = read_image(self.samples[key[1]].image_path)
        except DataError as error:
            return error
        return _to_chw(crop_image(image, _window(image, self.config, [self.seed, 2, *key])))


class EndlessSampler(Sampler[Key]):
    """One permutation of the samples after another. What comes n-th depends on the seed and n alone.

    Args:
        num_samples: Samples in an epoch.
        seed: Of the permutations.
        start: How many draws are skipped.
    """

    def __init__(self, num_samples: int, seed: Sequence[int], *, start: int = 0) -> None:
        self.num_samples, self.seed, self.start = num_samples, seed, start

    def __iter__(self) -> Iterator[Key]:
        first_epoch, skipped = divmod(self.start, self.num_samples)
        for epoch in count(first_epoch):
            order = np.random.default_rng([*self.seed, epoch]).permutation(self.num_samples)
            yield from ((epoch, int(index)) for index in order[skipped:])
            skipped = 0


def labeled_batches(
    samples: Sequence[Sample],
    classes: ClassSet,
    config: DataConfig,
    *,
    seed: int,
    pin_memory: bool,
    start: int = 0,
) -> Iterator[LabeledBatch]:
    """Return endless batches of labeled crops, from batch `start` on.

    Raises:
        DataError: (while iterating) An image or a mask cannot be used; the message names the file.
    """
    loader = _loader(
        LabeledCrops(samples, classes, config, seed),
        EndlessSampler(len(samples), [seed, 1], start=start * config.labeled_batch),
        batch=config.labeled_batch,
        workers=config.workers or 0,
        pin_memory=pin_memory,
    )
    for images, masks in _checked(loader):
        yield LabeledBatch(images, masks)


def unlabeled_batches(
    samples: Sequence[Sample], config: DataConfig, *, seed: int, pin_memory: bool, start: int = 0
) -> Iterator[Tensor]:
    """Return endless batches of unlabeled crops, (B, 3, H, W) uint8, from batch `start` on.

    Raises:
        DataError: (while iterating) An image cannot be used; the message names the file.
    """
    loader = _loader(
        UnlabeledCrops(samples, config, seed),
        EndlessSampler(len(samples), [seed, 2], start=start * config.unlabeled_batch),
        batch=config.unlabeled_batch,
        workers=config.workers or 0,
        pin_memory=pin_memory,
    )
    yield from _checked(loader)


def whole_images(
    samples: Sequence[Sample], classes: ClassSet, config: DataConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return each image at its own size, (3, H, W) uint8, and its mask, (H, W) uint8, in order.

    Raises:
        DataError: (while iterating) An image or a mask cannot be used.
    """
    dataset = _WholeImages(samples, classes, config)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, num_workers=config.workers or 0, generator=torch.Generator()
    )
    yield from _checked(loader)


def read_labeled(sample: Sample, classes: ClassSet, config: DataConfig) -> tuple[UInt8Array, UInt8Array]:
    """Return an image (H, W, 3) and its mask (H, W).

    Raises:
        DataError: One of them cannot be used, or their sizes differ.
    """
    image = read_image(sample.image_path)
    size = (image.shape[0], image.shape[1])
    return image, read_truth(sample, classes, values=config.mask_values, size=size)


@dataclass(frozen=True)
class _WholeImages(Dataset[tuple[Tensor, Tensor] | DataError]):
    samples: Sequence[Sample]
    classes: ClassSet
    config: DataConfig

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | DataError:
        try:
            image, mask = read_labeled(self.samples[index], self.classes, self.config)
        except DataError as error:
            return error
        return _to_chw(image), torch.from_numpy(mask)


def _loader(
    dataset: Dataset[Any], sampler: Sampler[Key], *, batch: int, workers: int, pin_memory: bool
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        # Of its own: creating an iterator must not draw from the global generator
        generator=torch.Generator(),
    )


def _stack(items: list[Any]) -> Any:
    """Stack samples; pass on the first that failed. A DataLoader would wrap an exception in a traceback."""
    for item in items:
        if isinstance(item, DataError):
            return item
    if isinstance(items[0], Tensor):
        return torch.stack(items)
    return tuple(torch.stack(parts) for parts in zip(*items, strict=True))


def _checked(loader: DataLoader[Any]) -> Iterator[Any]:
    for item in loader:
        if isinstance(item, DataError):
            raise item
        yield item


def _window(image: UInt8Array, config: DataConfig, seed: list[int]) -> CropWindow:
    return draw_window(
        np.random.default_rng(seed),
        (image.shape[0], image.shape[1]),
        size_px=config.crop_px,
        scale=(config.scale_min, config.scale_max),
        rotation_deg=config.rotation_deg,
        flip=config.flip,
    )


def _to_chw(image: UInt8Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
