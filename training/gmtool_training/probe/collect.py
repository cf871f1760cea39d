"""Features of the labeled and unlabeled images of a run, as far as time and memory go."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from gmtool.classes import ClassSet
from gmtool.config import TrainConfig
from gmtool.console import remark
from gmtool.data.datasets import TrainingData
from gmtool.errors import DataError, some_names
from gmtool.images import UInt8Array
from gmtool.nn.model import GuidedMixNet
from gmtool.progress import track
from gmtool.resources import available_memory
from gmtool_training.data.cache import Readers
from gmtool_training.probe.bank import (
    Bank,
    BankBuilder,
    View,
    any_pixels,
    features_at,
    labeled_pixels,
    probabilities_at,
)

MAX_SHARE = 0.25
"""Share of the free memory that features may take: those of labeled images, then those of unlabeled ones."""


def is_bf16(config: TrainConfig) -> bool:
    """Return whether features are computed in bfloat16."""
    return config.run.precision == "bf16-mixed"


def affordable_views(
    network: GuidedMixNet,
    data: TrainingData,
    read: Readers,
    views: Sequence[View],
    seconds: float,
    *,
    bf16: bool = False,
) -> tuple[View, ...]:
    """Return the views that all labeled images take within `seconds`: the image as it is, then the cheapest."""
    image = read.labeled(0)[0]
    somewhere = torch.zeros(1, dtype=torch.int64)
    whole_image = partial(features_at, network, image, View(1.0, False), somewhere, somewhere, bf16=bf16)
    whole_image()  # the first call loads the kernels of a card, which takes seconds
    started = time.monotonic()
    whole_image()
    whole = (time.monotonic() - started) * len(data.labeled.samples)
    ordered = sorted(views, key=lambda view: (view.scale != 1.0, view.scale))
    costs = view_costs(ordered, whole * float(np.mean([view.scale**2 for view in ordered])))
    return tuple(ordered[: max(2, int((costs <= seconds).sum()))])


def view_costs(views: Sequence[View], mean_s: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the seconds of the first view, the first two, and so on: they grow with the pixels.

    Args:
        views: In order.
        mean_s: Of a view, mean over all of them.
    """
    pixels = np.array([view.scale**2 for view in views])
    costs: np.ndarray[tuple[int], np.dtype[np.float64]] = np.cumsum(pixels) * mean_s / pixels.mean()
    return costs


def class_pixel_weights(counts: Tensor, *, balance: float) -> Tensor:
    """Return the weight of a pixel of each label, (256,): (share of its class) ** -balance; 0 where none occurs.

    Args:
        counts: (K,) labeled pixels of each class.
        balance: See `ProbeConfig`.
    """
    share = counts.double() / counts.sum()
    weights = torch.zeros(256, dtype=torch.float64)
    weights[: len(counts)] = torch.where(share > 0, share.clamp(min=1e-5) ** -balance, torch.zeros(()).double())
    return weights.float()


def bytes_of_pixel(network: GuidedMixNet) -> int:
    """Return the memory of the features of a pixel in one view: float16, with two means of the last level."""
    return 2 * (sum(network.encoder.channels) + 2 * network.encoder.channels[-1])


def affordable_pixels(network: GuidedMixNet, images: int, views: int, wanted: int) -> int:
    """Return the pixels of each image, up to `wanted`, whose features fit into `MAX_SHARE` of the free memory."""
    room = int(MAX_SHARE * available_memory() / (bytes_of_pixel(network) * views))
    return max(1, min(wanted, room // images))


def labeled_bank(
    network: GuidedMixNet,
    data: TrainingData,
    classes: ClassSet,
    read: Readers,
    views: Sequence[View],
    *,
    pixels: int,
    config: TrainConfig,
    random: np.random.Generator,
    indices: Sequence[int] | None = None,
) -> Bank:
    """Return features of pixels of labeled images, drawn by the weights of their classes.

    Fewer pixels than `pixels` an image are taken if their features do not fit into memory; this is said.
    """
    indices = range(len(data.labeled.samples)) if indices is None else indices
    wanted, pixels = pixels, affordable_pixels(network, len(indices), len(views), pixels)
    if pixels < wanted:
        remark(f"{pixels} pixels of a labeled image instead of {wanted}: features of more do not fit into memory")
    masks = [read.labeled(index)[1] for index in indices]
    counts = sum(torch.bincount(torch.from_numpy(mask).flatten().long(), minlength=256) for mask in masks)
    assert isinstance(counts, Tensor)
    weights = class_pixel_weights(counts[: len(classes)], balance=config.probe.balance)
    weights[classes.ignore_index] = 0
    mean = float(np.mean([weights.numpy()[mask].sum() for mask in masks]))
    builder = BankBuilder(network, views, bf16=is_bf16(config))
    for index in track(indices, total=len(indices)):
        image, mask = read.labeled(index)
        builder.add(image, labeled_pixels(mask, weights, pixels, mean_weight=mean, random=random))
    return replace(builder.build(), drawn=weights)


def unlabeled_bank(
    network: GuidedMixNet,
    data: TrainingData,
    read: Readers,
    views: Sequence[View],
    *,
    config: TrainConfig,
    seconds: float,
    seconds_a_view: float,
    random: np.random.Generator,
    teacher: nn.Module | None = None,
) -> Bank:
    """Return features of pixels of unlabeled images: as many images and views as time and memory allow.

    Images that cannot be read are left out and named. With a teacher, its probabilities are kept beside them.
    """
    count = len(data.unlabeled.samples)
    seconds_of_teacher = 0.0 if teacher is None else _teacher_seconds(teacher, read.labeled(0)[0])
    # Every image twice, then other scales as far as the time goes; fewer images only if that is too much
    costs = view_costs(views, seconds_a_view)
    taken = views[: max(2, int((costs <= seconds / count - seconds_of_teacher).sum()))]
    seconds_an_image = float(costs[len(taken) - 1]) + seconds_of_teacher
    images = max(1, min(count, int(min(float(count), seconds / seconds_an_image))))
    pixels = affordable_pixels(network, images, len(taken), config.probe.unlabeled_pixels)
    size_mib = pixels * images * len(taken) * bytes_of_pixel(network) / 2**20
    remark(f"keeping features of {images} of {count} unlabeled images in memory: up to {size_mib:.0f} MiB")
    started = time.monotonic()
    chosen = random.permutation(count)[:images].tolist()
    builder = BankBuilder(network, taken, bf16=is_bf16(config), teacher=teacher)
    unreadable = []
    # A machine that became slower since the estimate gives fewer images, not a longer run
    for index in track(_until(chosen, started + seconds), total=images):
        try:
            image = read.unlabeled(index)
        except DataError:
            unreadable.append(data.unlabeled.samples[index].id)
            continue
        size = (image.shape[0], image.shape[1])
        builder.add(image, any_pixels(size, pixels, ignore_index=255, random=random))
    if unreadable:
        remark(
            f"warning: {len(unreadable)} unlabeled images cannot be read and are left out: "
            f"{some_names(unreadable)}"
        )
    if not builder.num_images:
        raise DataError(f"none of {images} unlabeled images can be read: {some_names(unreadable)}")
    bank = builder.build()
    remark(
        f"features of {builder.num_images} of {count} unlabeled images, {len(taken)} views each: "
        f"{time.monotonic() - started:.0f} s, {bank.bytes / 2**20:.0f} MiB"
    )
    return bank


def _until(indices: Sequence[int], end: float) -> Iterator[int]:
    """Yield indices, at least one, until `time.monotonic` has passed `end`."""
    for place, index in enumerate(indices):
        if place and time.monotonic() > end:
            return
        yield index


def _teacher_seconds(teacher: nn.Module, image: UInt8Array) -> float:
    """Return the time that a teacher takes for an image, seconds."""
    somewhere = torch.zeros(1, dtype=torch.int64)
    look = partial(probabilities_at, teacher, image, somewhere, somewhere)
    look()  # as above
    started = time.monotonic()
    look()
    return time.monotonic() - started
