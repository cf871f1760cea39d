"""Training batches of labeled and unlabeled crops, drawn independently from (seed, epoch, image)."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.console import remark
from gmtool.data.datasets import Split
from gmtool.data.samples import Sample
from gmtool.errors import DataError
from gmtool.images import UInt8Array
from gmtool_training.data.batch_order import STREAMS, EndlessBatches, Key, batch_order
from gmtool_training.data.crops import CropWindow, crop_image, crop_inside, crop_mask, draw_window
from gmtool_training.data.readers import ImageReader, LabeledReader, image_files, labeled_files

NAMED_UNREADABLE = 3
"""Number of unreadable images that are named; more are only counted."""


class LabeledBatch(NamedTuple):
    """Batch of labeled crops."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB."""
    masks: Tensor
    """(B, H, W) uint8 class indices and ignore index."""


class UnlabeledBatch(NamedTuple):
    """Batch of unlabeled crops."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB."""
    inside: Tensor
    """(B, H, W) bool: False outside of the image, where the crop has the mean colour."""


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
            return error  # raised in the training process, see _stack
        epoch, index = key
        number = epoch % self.config.kept_crops if self.config.kept_crops else epoch
        window = _window(image, self.config, [self.seed, STREAMS["labeled"], number, index])
        cropped_mask = crop_mask(mask, window, ignore_index=self.ignore_index)
        return _to_chw(crop_image(image, window)), torch.from_numpy(cropped_mask)


class UnlabeledCrop(NamedTuple):
    """Crop of an unlabeled image."""

    image: Tensor
    """(3, H, W) uint8 RGB."""
    inside: Tensor
    """(H, W) bool: False outside of the image."""
    problems: tuple[tuple[int, str], ...]
    """Index and error of each unreadable image that was skipped for this one."""


@dataclass(frozen=True)
class UnlabeledCrops(Dataset[UnlabeledCrop | DataError]):
    """Random crops of unlabeled images; no mask is opened.

    An unreadable image is replaced by the next readable one, which depends on the files only, so that a resumed
    run gets the same.
    """

    read: ImageReader
    count: int
    config: DataConfig
    seed: int

    def __getitem__(self, key: Key) -> UnlabeledCrop | DataError:
        problems: list[tuple[int, str]] = []
        for step in range(self.count):
            index = (key[1] + step) % self.count
            try:
                image = self.read(index)
            except DataError as error:
                problems.append((index, str(error)))
                continue
            window = _window(image, self.config, [self.seed, STREAMS["unlabeled"], *key])
            inside = crop_inside((image.shape[0], image.shape[1]), window)
            return UnlabeledCrop(_to_chw(crop_image(image, window)), torch.from_numpy(inside), tuple(problems))
        return DataError(f"none of the {self.count} unlabeled images can be read: {problems[0][1]}")


class UnreadableImages:
    """Unreadable unlabeled images of a run: the first ones are named, all are counted."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._found: set[int] = set()

    def add(self, index: int, problem: str) -> None:
        """Record an image; remark it if it is new and one of the first."""
        if index not in self._found and len(self._found) < NAMED_UNREADABLE:
            remark(f"warning: unlabeled image skipped: {problem}")
        self._found.add(index)

    def remark_count(self) -> None:
        """Remark the number of unreadable images, with the first ids."""
        if self._found:
            ids = [self._split.samples[index].id for index in sorted(self._found)]
            more = ", ..." if len(ids) > NAMED_UNREADABLE else ""
            remark(
                f"warning: {len(ids)} of {len(self._split.samples)} unlabeled images could not be read and were "
                f"skipped: {', '.join(ids[:NAMED_UNREADABLE])}{more}: gmtool data check names all"
            )


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
) -> Generator[LabeledBatch]:
    """Yield endless batches of labeled crops.

    Args:
        samples: Labeled samples.
        classes: Classes of the masks.
        config: Augmentation, batch size, workers.
        seed: Seed of the run.
        pin_memory: Put batches into pinned memory, for copies to a GPU.
        start: Number of the first batch.
        share: As in `EndlessBatches`.
        read: Reader of images and masks; None: from their files.

    Raises:
        DataError: (while iterating) An image or mask cannot be read; the message names the file.
    """
    loader = _loader(
        LabeledCrops(read or labeled_files(samples, classes, config), classes.ignore_index, config, seed),
        batch_order("labeled", samples, config, seed=seed, start=start, share=share),
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
    unreadable: UnreadableImages | None = None,
) -> Generator[UnlabeledBatch]:
    """Yield endless batches of unlabeled crops; other arguments as for `labeled_batches`.

    Args:
        samples: Unlabeled samples.
        config: Augmentation, batch size, workers.
        seed: Seed of the run.
        pin_memory: Put batches into pinned memory.
        start: Number of the first batch.
        share: As in `EndlessBatches`.
        read: Reader of images; None: from their files.
        unreadable: Receives unreadable images, which are skipped.

    Raises:
        DataError: (while iterating) No image can be read; the message names one.
    """
    loader = _loader(
        UnlabeledCrops(read or image_files(samples), len(samples), config, seed),
        batch_order("unlabeled", samples, config, seed=seed, start=start, share=share),
        workers=config.workers or 0,
        pin_memory=pin_memory,
    )
    for images, inside, problems in _checked(loader):
        if unreadable is not None:
            for index, problem in problems:
                unreadable.add(index, problem)
        yield UnlabeledBatch(images, inside)


def whole_images(
    samples: Sequence[Sample],
    classes: ClassSet,
    config: DataConfig,
    *,
    read: LabeledReader | None = None,
    indices: Sequence[int] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Generator[tuple[Tensor, Tensor]]:
    """Yield each image at its own size, (3, H, W) uint8, with its mask, (H, W) uint8, in order.

    Args:
        samples: Labeled samples.
        classes: Classes of the masks.
        config: Encoding of the masks, workers.
        read: Reader of images and masks; None: from their files.
        indices: Samples to take; None: all.
        share: (i, n): every n-th of them from the i-th on.

    Raises:
        DataError: (while iterating) An image or mask cannot be read.
    """
    first, step = share
    taken = (range(len(samples)) if indices is None else indices)[first::step]
    dataset = _WholeImages(read or labeled_files(samples, classes, config), taken)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, num_workers=config.workers or 0, generator=torch.Generator()
    )
    yield from _checked(loader)


@dataclass(frozen=True)
class _WholeImages(Dataset[tuple[Tensor, Tensor] | DataError]):
    read: LabeledReader
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | DataError:
        try:
            image, mask = self.read(self.indices[index])
        except DataError as error:
            return error
        return _to_chw(image), torch.from_numpy(mask.copy())  # the reader may reuse its array


def _loader(dataset: Dataset[Any], batches: EndlessBatches, *, workers: int, pin_memory: bool) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        # Else creating an iterator draws from the global generator
        generator=torch.Generator(),
    )


def _stack(items: list[Any]) -> Any:
    """Stack samples; return the first error instead, since a DataLoader would wrap it in a traceback."""
    for item in items:
        if isinstance(item, DataError):
            return item
    if isinstance(items[0], UnlabeledCrop):
        images, insides, problems = zip(*items, strict=True)
        found = [one for several in problems for one in several]
        return default_collate(list(images)), default_collate(list(insides)), found
    return default_collate(items)  # in a worker, into shared memory


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
    """Return an image (H, W, 3) as (3, H, W); a crop is stored that way, so it is not copied."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
