"""Validation during training: confusion matrix over whole images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.data.datasets import Split
from gmtool.errors import DataError
from gmtool.nn.model import GuidedMixNet, Output, normalize
from gmtool.report.metrics import Int64Array, confusion_matrix
from gmtool_training.data.batches import whole_images
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
    images = whole_images(split.samples, classes, config, read=read, indices=mine)
    for index, (image, mask) in zip(mine, images, strict=True):
        before_image()
        try:
            with machine.autocast():
                predictions = [
                    scores[0].max(dim=0).indices.to(torch.uint8).cpu().numpy()
                    for scores in logits(normalize(machine.to_device(image)[None]))
                ]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            height, width = mask.shape
            raise DataError(
                f"a validation image of {width}x{height} does not fit into memory: {REMEDY}"
            ) from error
        truth = mask.numpy()
        found = [
            confusion_matrix(truth, each, num_classes=len(classes), ignore_index=classes.ignore_index)
            for each in predictions
        ]
        matrices += np.stack(found)
        if seen is not None:
            seen.add(index, image.permute(1, 2, 0).numpy(), truth, predictions[-1], found[-1])
    counts = torch.from_numpy(matrices).to(machine.device)
    return list(machine.sum(counts).cpu().numpy())
