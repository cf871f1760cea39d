"""Validation during training: confusion matrix over whole images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor, nn

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.data.datasets import Split
from gmtool.errors import DataError
from gmtool.nn.model import GuidedMixNet, Output, normalize
from gmtool.report.metrics import Int64Array, count_pairs, matrix_of_pairs
from gmtool_training.data.batches import whole_images
from gmtool_training.data.copying import copied
from gmtool_training.data.readers import LabeledReader
from gmtool_training.engine.machine import Machine
from gmtool_training.engine.validation_memory import REMEDY, is_out_of_memory
from gmtool_training.watch.examples import ValidationImages


def validate(
    machine: Machine,
    network: nn.Module,
    split: Split,
    *,
    classes: ClassSet,
    config: DataConfig,
    before_image: Callable[[], None],
    read: LabeledReader | None = None,
    indices: Sequence[int] | None = None,
    seen: ValidationImages | None = None,
) -> Int64Array:
    """Return the confusion matrix over a split, (C, C) int64: whole images, one scale, no flip.

    Each process scores its share of the images; the counts are summed. The network's mode does not change.

    Args:
        machine: Device, precision and processes.
        network: Network to score.
        split: Labeled images.
        classes: Classes of the masks.
        config: Encoding of the masks, workers.
        before_image: Called before each image; may raise.
        read: Reader of images and masks; None: from their files.
        indices: Images of the split to score; None: all.
        seen: Receives the images of this process.

    Raises:
        DataError: An image or mask cannot be read, or an image does not fit into memory.
    """

    def logits(image: Tensor) -> Iterator[Tensor]:
        output: Output = network(image)
        yield output.logits

    was_training = network.training
    network.eval()
    (matrix,) = _matrices(
        machine,
        logits,
        split,
        1,
        classes=classes,
        config=config,
        before_image=before_image,
        read=read,
        indices=range(len(split.samples)) if indices is None else indices,
        seen=seen,
    )
    network.train(was_training)
    return matrix


def validate_decoders(
    machine: Machine,
    network: GuidedMixNet,
    decoders: Sequence[nn.Module],
    split: Split,
    *,
    classes: ClassSet,
    config: DataConfig,
    before_image: Callable[[], None],
    read: LabeledReader,
    seen: ValidationImages,
) -> list[Int64Array]:
    """Return the confusion matrix of each of several decoders of one encoder, which is computed once an image.

    Args:
        machine: Device, precision and processes.
        network: The encoder's network, in evaluation mode.
        decoders: In evaluation mode; `seen` receives the predictions of the last one.
        split: Labeled images.
        classes: Classes of the masks.
        config: Encoding of the masks, workers.
        before_image: Called before each image; may raise.
        read: Reader of images and masks.
        seen: Receives the images.

    Raises:
        DataError: An image or mask cannot be read, or an image does not fit into memory.
    """

    def logits(image: Tensor) -> Iterator[Tensor]:
        height, width = image.shape[-2:]
        features = network.features(network.pad(image))
        for decoder in decoders:
            yield network.upscale(decoder(features).scores, height, width)

    return _matrices(
        machine,
        logits,
        split,
        len(decoders),
        classes=classes,
        config=config,
        before_image=before_image,
        read=read,
        indices=range(len(split.samples)),
        seen=seen,
    )


@torch.no_grad()
def _matrices(
    machine: Machine,
    logits: Callable[[Tensor], Iterator[Tensor]],
    split: Split,
    count: int,
    *,
    classes: ClassSet,
    config: DataConfig,
    before_image: Callable[[], None],
    read: LabeledReader | None,
    indices: Sequence[int],
    seen: ValidationImages | None,
) -> list[Int64Array]:
    """Return one confusion matrix for each of the `count` scores, (1, C, H, W), that `logits` gives an image."""
    matrices = np.zeros((count, len(classes), len(classes)), dtype=np.int64)
    mine = indices[machine.rank :: machine.processes]
    last: _Scored | None = None
    with closing(whole_images(split.samples, classes, config, read=read, indices=mine)) as images:
        for index, (image, mask) in zip(mine, images, strict=True):
            before_image()
            try:
                with machine.autocast():
                    predictions = [
                        scores[0].max(dim=0).indices.to(torch.uint8)
                        for scores in logits(normalize(copied(image, machine.device)[None]))
                    ]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                height, width = mask.shape
                raise DataError(
                    f"a validation image of {width}x{height} does not fit into memory: {REMEDY}"
                ) from error
            scored = _Scored(index, image, mask, predictions)
            # A card computes this image while the counts of the one before are read
            if last is not None:
                matrices += last.read(classes, seen)
            last = scored
        if last is not None:
            matrices += last.read(classes, seen)
    counts = torch.from_numpy(matrices).to(machine.device)
    return list(machine.sum(counts).cpu().numpy())


class _Scored:
    """An image with its predictions, whose pixels are counted where they were predicted.

    Args:
        index: Place of the image in its split.
        image: (3, H, W) uint8 RGB.
        mask: True classes, (H, W) uint8.
        predictions: Predicted classes, (H, W) uint8 each, on the device.
    """

    def __init__(self, index: int, image: Tensor, mask: Tensor, predictions: Sequence[Tensor]) -> None:
        self._index, self._image, self._mask = index, image, mask
        self._copied: torch.cuda.Event | None = None
        on_card = predictions[-1].is_cuda
        if on_card:
            truth = copied(mask, predictions[-1].device)
            counts = torch.stack([count_pairs_on_device(truth, each) for each in predictions])
        else:
            pairs = [count_pairs(mask.numpy(), each.cpu().numpy()) for each in predictions]
            counts = torch.from_numpy(np.stack(pairs))
        self._counts = counts.to("cpu", non_blocking=on_card)
        self._prediction = predictions[-1].to("cpu", non_blocking=on_card)
        if on_card:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self, classes: ClassSet, seen: ValidationImages | None) -> Int64Array:
        """Return the confusion matrix of each prediction, (count, C, C); give image and last one to `seen`."""
        if self._copied is not None:
            self._copied.synchronize()
        found = np.stack(
            [
                matrix_of_pairs(each, num_classes=len(classes), ignore_index=classes.ignore_index)
                for each in self._counts.numpy()
            ]
        )
        if seen is not None:
            pixels, truth = self._image.permute(1, 2, 0).numpy(), self._mask.numpy()
            seen.add(self._index, pixels, truth, self._prediction.numpy(), found[-1])
        return found


def count_pairs_on_device(truth: Tensor, prediction: Tensor) -> Tensor:
    """Return the number of pixels by (true label, predicted label), (256, 256) int64, without waiting for a card.

    The same as `gmtool.report.metrics.count_pairs`, which is faster on a processor.
    """
    pairs = truth.flatten().long() * 256 + prediction.flatten()
    counts = torch.zeros(1 << 16, dtype=torch.int64, device=pairs.device)
    return counts.scatter_add_(0, pairs, torch.ones_like(pairs)).view(256, 256)
