"""Cache of decoded images and masks in memory shared by all worker processes (`data.cache = "ram"`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.console import remark
from gmtool.data.datasets import TrainingData
from gmtool.data.samples import Sample
from gmtool.errors import DataError
from gmtool.images import UInt8Array
from gmtool.progress import track
from gmtool.resources import SHARED_DIR, available_memory
from gmtool_training.data.readers import ImageReader, LabeledReader, image_files, labeled_files

MAX_SHARE = 0.9
"""Largest share of the free memory that a cache may use."""


@dataclass(frozen=True)
class Readers:
    """Readers of labeled, unlabeled and validation images."""

    labeled: LabeledReader
    unlabeled: ImageReader
    val: LabeledReader


@dataclass(frozen=True, eq=False)
class Shared:
    """Decoded samples of one split in one block: (H, W, 3) image, then (H, W) mask of labeled samples."""

    pixels: Tensor
    """(bytes,) uint8 in shared memory; other processes get a handle, not a copy."""
    offsets: npt.NDArray[np.int64]
    """(N,) first byte of each sample."""
    sizes: npt.NDArray[np.int64]
    """(N, 2) height and width; 0 and 0 for an unreadable image."""
    problems: dict[int, str] = field(default_factory=dict)
    """Error message by index of an unreadable image."""

    def image(self, index: int) -> UInt8Array:
        """Return an image (H, W, 3), read-only.

        Raises:
            DataError: The image could not be read.
        """
        if index in self.problems:
            raise DataError(self.problems[index])
        height, width = self.sizes[index]
        return self._part(self.offsets[index], height * width * 3).reshape(height, width, 3)

    def labeled(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """Return an image (H, W, 3) and its mask (H, W), read-only."""
        height, width = self.sizes[index]
        mask = self._part(self.offsets[index] + height * width * 3, height * width).reshape(height, width)
        return self.image(index), mask

    def _part(self, start: np.int64, length: np.int64) -> UInt8Array:
        part: UInt8Array = self.pixels.numpy()[start : start + length]
        part.flags.writeable = False
        return part


def open_readers(data: TrainingData, classes: ClassSet, config: DataConfig) -> Readers:
    """Return the readers of a run: from files, or from a cache that is filled here.

    Raises:
        DataError: The cache does not fit into memory, or a labeled image or mask cannot be read. For an unlabeled
            image, its reader raises the error.
    """
    labeled = labeled_files(data.labeled.samples, classes, config)
    unlabeled = image_files(data.unlabeled.samples)
    val = labeled_files(data.val.samples, classes, config)
    if config.cache == "none":
        return Readers(labeled, unlabeled, val)
    splits = [data.labeled.samples, data.unlabeled.samples, data.val.samples]
    readable = (_size_of, _size_or_none, _size_of)  # unlabeled images may be unreadable
    with ThreadPoolExecutor() as pool:  # reading and decoding release the interpreter lock
        sizes = [
            np.array(list(pool.map(size_of, samples)), np.int64).reshape(-1, 2)
            for size_of, samples in zip(readable, splits, strict=True)
        ]
    lengths = [size.prod(axis=1) * channels for size, channels in zip(sizes, (4, 3, 4), strict=True)]
    need = sum(int(length.sum()) for length in lengths)
    _refuse_too_large(need)
    shared = [
        Shared(_shared_bytes(int(length.sum())), np.cumsum(length) - length, size)
        for size, length in zip(sizes, lengths, strict=True)
    ]
    _fill(shared, [labeled, lambda index: (unlabeled(index),), val], splits, may_fail=shared[1])
    remark(f"cache: {sum(map(len, splits))} images decoded into {need / 2**30:.2f} GiB of shared memory")
    return Readers(shared[0].labeled, shared[1].image, shared[2].labeled)


def _shared_bytes(count: int) -> Tensor:
    pixels = torch.empty(max(1, count), dtype=torch.uint8)
    return cast(Tensor, pixels.share_memory_())  # type: ignore[no-untyped-call]


def _size_of(sample: Sample) -> tuple[int, int]:
    return sample.image_size()


def _size_or_none(sample: Sample) -> tuple[int, int]:
    try:
        return _size_of(sample)
    except DataError:
        return 0, 0


def _refuse_too_large(need: int) -> None:
    places = {"memory": available_memory()}
    if SHARED_DIR.is_dir():
        places[f"shared memory ({SHARED_DIR})"] = shutil.disk_usage(SHARED_DIR).free
    for place, available in places.items():
        if need > MAX_SHARE * available:
            needed, free = (f"{count / 2**30:.3g} GiB" for count in (need, available))
            raise DataError(
                f"data.cache=ram needs {needed} of {place}; {free} are free, of which it uses at most "
                f"{MAX_SHARE:.0%}: use --cache none, or free memory"
            )


def _fill(
    shared: Sequence[Shared],
    readers: Sequence[Callable[[int], tuple[UInt8Array, ...]]],
    splits: Sequence[Sequence[Sample]],
    *,
    may_fail: Shared,
) -> None:
    """Decode every sample into its place, with a progress bar; `may_fail` records unreadable images."""

    def decode(place: tuple[int, int]) -> None:
        part, index = place
        target = shared[part]
        try:
            arrays = readers[part](index)
        except DataError as error:
            if target is not may_fail:
                raise
            target.problems[index] = str(error)
            return
        if 3 * target.sizes[index].prod() != arrays[0].size:
            raise DataError(f"{splits[part][index].image_path} changed while it was read: start again")
        # A PNG may have its orientation after the pixels: height and width swap, the length stays
        target.sizes[index] = arrays[0].shape[:2]
        start = int(target.offsets[index])
        for array in arrays:
            target.pixels[start : start + array.size].numpy()[:] = array.ravel()
            start += array.size

    places = [(part, index) for part, samples in enumerate(splits) for index in range(len(samples))]
    with ThreadPoolExecutor() as pool:
        done: Iterator[None] = pool.map(decode, places)
        for _ in track(done, total=len(places)):
            pass
