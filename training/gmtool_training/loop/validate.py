"""Validation during training: confusion matrix over whole images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.data.datasets import Split
from gmtool.errors import DataError
from gmtool.nn.copying import copied
from gmtool.nn.model import Output, normalize
from gmtool.report.metrics import Int64Array, count_pairs, matrix_of_pairs
from gmtool_training.data.batches import whole_images
from gmtool_training.data.readers import LabeledReader
from gmtool_training.engine.machine import Machine, any_size
from gmtool_training.engine.validation_memory import REMEDY, is_out_of_memory
from gmtool_training.watch.examples import WorstImages


@torch.no_grad()
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
    worst: WorstImages | None = None,
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
        worst: Keeps the images of this process with the lowest mIoU.

    Raises:
        DataError: An image or mask cannot be read, or an image does not fit into memory.
    """
    was_training = network.training
    network.eval()
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    mine = (range(len(split.samples)) if indices is None else indices)[machine.rank :: machine.processes]
    images = whole_images(split.samples, classes, config, read=read, indices=mine)
    last: _Scored | None = None
    with any_size():
        for index, (image, mask) in zip(mine, images, strict=True):
            before_image()
            try:
                prediction = _predict(machine, network, image)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                height, width = mask.shape
                raise DataError(
                    f"a validation image of {width}x{height} does not fit into memory: {REMEDY}"
                ) from error
            scored = _Scored(index, image, mask, prediction)
            # A card computes this image while the counts of the one before are read
            if last is not None:
                matrix += last.read(classes, worst)
            last = scored
        if last is not None:
            matrix += last.read(classes, worst)
    network.train(was_training)
    counts = torch.from_numpy(matrix).to(machine.device)
    return machine.sum(counts).cpu().numpy()


def _predict(machine: Machine, network: nn.Module, image: Tensor) -> Tensor:
    """Return the likeliest class of each pixel of an image (3, H, W) uint8, (H, W) uint8, on the device."""
    with machine.autocast():
        output: Output = network(normalize(copied(image, machine.device)[None]))
    return output.logits[0].max(dim=0).indices.to(torch.uint8)


class _Scored:
    """An image with its prediction on the device, whose pixels are counted there.

    Args:
        index: Place of the image in its split.
        image: (3, H, W) uint8 RGB.
        mask: True classes, (H, W) uint8.
        prediction: Predicted classes, (H, W) uint8, on the device.
    """

    def __init__(self, index: int, image: Tensor, mask: Tensor, prediction: Tensor) -> None:
        self._index, self._image, self._mask, self._prediction = index, image, mask, prediction
        self._copied: torch.cuda.Event | None = None
        if prediction.is_cuda:
            on_card = count_pairs_on_device(copied(mask, prediction.device), prediction)
            self._counts = on_card.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        else:
            self._counts = torch.from_numpy(count_pairs(mask.numpy(), prediction.cpu().numpy()))

    def read(self, classes: ClassSet, worst: WorstImages | None) -> Int64Array:
        """Return the confusion matrix of the image, (C, C); give the image to `worst`, which may keep it."""
        if self._copied is not None:
            self._copied.synchronize()
        found = matrix_of_pairs(self._counts.numpy(), num_classes=len(classes), ignore_index=classes.ignore_index)
        if worst is not None and worst.takes(found):
            prediction = self._prediction.cpu().numpy()
            worst.add(self._index, self._image.permute(1, 2, 0).numpy(), self._mask.numpy(), prediction, found)
        return found


def count_pairs_on_device(truth: Tensor, prediction: Tensor) -> Tensor:
    """Return the number of pixels by (true label, predicted label), (256, 256) int64, without waiting for a card.

    The same as `gmtool.report.metrics.count_pairs`, which is faster on a processor.
    """
    pairs = truth.flatten().long() * 256 + prediction.flatten()
    counts = torch.zeros(1 << 16, dtype=torch.int64, device=pairs.device)
    return counts.scatter_add_(0, pairs, torch.ones_like(pairs)).view(256, 256)
