"""Batches for training: labeled and unlabeled images drawn independently, each draw from (seed, epoch, image)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.errors import DataError
from gmtool.images import UInt8Array, read_image
from gmtool.samples import Sample
from gmtool.truth import read_truth
from gmtool_training.augment import CropWindow, crop_image, crop_inside, crop_mask, draw_window

Key = tuple[int, int]
"""(epoch, index of the sample)"""

LabeledReader = Callable[[int], tuple[UInt8Array, UInt8Array]]
"""From the index of a sample to its image (H, W, 3) and its mask (H, W); raises DataError."""
ImageReader = Callable[[int], UInt8Array]
"""From the index of a sample to its image (H, W, 3); raises DataError."""


class LabeledBatch(NamedTuple):
    """Labeled crops."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB."""
    masks: Tensor
    """(B, H, W) uint8: class indices, and the ignore index."""


class UnlabeledBatch(NamedTuple):
    """Unlabeled crops."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB."""
    inside: Tensor
    """(B, H, W) bool: False outside of the image, where a crop has the mean colour."""


@dataclass(frozen=True)
class LabeledCrops(Dataset[tuple[Tensor, Tensor] | DataError]):
    """Random crops of labeled images with their masks: (3, H, W) and (H, W), uint8."""

    read: LabeledReader
    ignore_index: int
    config: DataConfig
    seed: int

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | DataError:
        try:
            image, mask = self.read(key[1])
        except DataError as error:
            return error  # raised in the training process: see _stack
        window = _window(image, self.config, [self.seed, 1, *key])
        cropped_mask = crop_mask(mask, window, ignore_index=self.ignore_index)
        return _to_chw(crop_image(image, window)), torch.from_numpy(cropped_mask)


@dataclass(frozen=True)
class UnlabeledCrops(Dataset[tuple[Tensor, Tensor] | DataError]):
    """Random crops of images, (3, H, W) uint8, and where they show them, (H, W) bool. No mask is opened."""

    read: ImageReader
    config: DataConfig
    seed: int

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | DataError:
        try:
            image = self.read(key[1])
        except DataError as error:
            return error
        window = _window(image, self.config, [self.seed, 2, *key])
        inside = crop_inside((image.shape[0], image.shape[1]), window)
        return _to_chw(crop_image(image, window)), torch.from_numpy(inside)


class EndlessBatches(Sampler[list[Key]]):
    """One permutation of the samples after another, in batches. What comes n-th depends on the seed and n alone.

    Args:
        num_samples: Samples in an epoch.
        seed: Of the permutations.
        batch: Samples in a batch.
        start: How many batches are skipped.
        share: (i, n): only the i-th of n equal parts of each batch, for the i-th of n processes.
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


def labeled_batches(
    samples: Sequence[Sample],
    classes: ClassSet,
    config: DataConfig,
    *,
    seed: int,
    pin_memory: bool,
    start: int = 0,
    share: tuple[int, int] = (0, 1),
    read: LabeledReader | None = None,
) -> Iterator[LabeledBatch]:
    """Return endless batches of labeled crops, from batch `start` on, read by `read` or from their files.

    `share` is that of `EndlessBatches`.

    Raises:
        DataError: (while iterating) An image or a mask cannot be used; the message names the file.
    """
    loader = _loader(
        LabeledCrops(read or labeled_files(samples, classes, config), classes.ignore_index, config, seed),
        _labeled_order(samples, config, seed=seed, start=start, share=share),
        workers=config.workers or 0,
        pin_memory=pin_memory,
    )
    for images, masks in _checked(loader):
        yield LabeledBatch(images, masks)


def unlabeled_batches(
    samples: Sequence[Sample],
    config: DataConfig,
    *,
    seed: int,
    pin_memory: bool,
    start: int = 0,
    share: tuple[int, int] = (0, 1),
    read: ImageReader | None = None,
) -> Iterator[UnlabeledBatch]:
    """Return endless batches of unlabeled crops; the rest as for labeled ones.

    They are read by `read`, or from their files.

    Raises:
        DataError: (while iterating) An image cannot be used; the message names the file.
    """
    loader = _loader(
        UnlabeledCrops(read or image_files(samples), config, seed),
        _unlabeled_order(samples, config, seed=seed, start=start, share=share),
        workers=config.workers or 0,
        pin_memory=pin_memory,
    )
    for images, inside in _checked(loader):
        yield UnlabeledBatch(images, inside)


def ids_in_batch(
    labeled: Sequence[Sample],
    unlabeled: Sequence[Sample] | None,
    config: DataConfig,
    *,
    seed: int,
    number: int,
    unlabeled_number: int,
) -> list[str]:
    """Return which images a step worked on, for messages: those of the `number`-th batches, from 0."""
    keys = next(iter(_labeled_order(labeled, config, seed=seed, start=number)))
    ids = [labeled[index].id for _, index in keys]
    if unlabeled is not None and unlabeled_number >= 0:
        keys = next(iter(_unlabeled_order(unlabeled, config, seed=seed, start=unlabeled_number)))
        ids += [unlabeled[index].id for _, index in keys]
    return ids


def _labeled_order(
    samples: Sequence[Sample],
    config: DataConfig,
    *,
    seed: int,
    start: int,
    share: tuple[int, int] = (0, 1),
) -> EndlessBatches:
    return EndlessBatches(len(samples), [seed, 1], batch=config.labeled_batch, start=start, share=share)


def _unlabeled_order(
    samples: Sequence[Sample],
    config: DataConfig,
    *,
    seed: int,
    start: int,
    share: tuple[int, int] = (0, 1),
) -> EndlessBatches:
    return EndlessBatches(len(samples), [seed, 2], batch=config.unlabeled_batch, start=start, share=share)


def whole_images(
    samples: Sequence[Sample],
    classes: ClassSet,
    config: DataConfig,
    *,
    read: LabeledReader | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return each image at its own size, (3, H, W) uint8, and its mask, (H, W) uint8, in order.

    They are read by `read`, or from their files; `share` (i, n): every n-th from the i-th on.

    Raises:
        DataError: (while iterating) An image or a mask cannot be used.
    """
    first, step = share
    indices = range(first, len(samples), step)
    dataset = _WholeImages(read or labeled_files(samples, classes, config), indices)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, num_workers=config.workers or 0, generator=torch.Generator()
    )
    yield from _checked(loader)


def labeled_files(samples: Sequence[Sample], classes: ClassSet, config: DataConfig) -> LabeledReader:
    """Return a reader of images and masks that decodes their files at each call."""
    return partial(_read_labeled_at, samples, classes, config)


def image_files(samples: Sequence[Sample]) -> ImageReader:
    """Return a reader of images that decodes their files at each call. It opens no mask."""
    return partial(_read_image_at, samples)


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
    read: LabeledReader
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | DataError:
        try:
            image, mask = self.read(self.indices[index])
        except DataError as error:
            return error
        return _to_chw(image), torch.from_numpy(mask.copy())  # a reader may keep what it returns


# Functions of the module, so that a worker process can be sent one


def _read_labeled_at(
    samples: Sequence[Sample], classes: ClassSet, config: DataConfig, index: int
) -> tuple[UInt8Array, UInt8Array]:
    return read_labeled(samples[index], classes, config)


def _read_image_at(samples: Sequence[Sample], index: int) -> UInt8Array:
    return read_image(samples[index].image_path)


def _loader(dataset: Dataset[Any], batches: EndlessBatches, *, workers: int, pin_memory: bool) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
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
    return default_collate(items)  # in a worker, into the memory that it shares


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
    """Return an image (H, W, 3) as (3, H, W). A crop lies in memory that way already: nothing is copied."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
