"""Validation during training: confusion matrix over whole images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.data.datasets import Split
from gmtool.errors import DataError
from gmtool.nn.model import Output, normalize
from gmtool.report.metrics import Int64Array, confusion_matrix
from gmtool_training.data.batches import whole_images
from gmtool_training.data.readers import LabeledReader
from gmtool_training.engine.machine import Machine
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
    for index, (image, mask) in zip(mine, images, strict=True):
        before_image()
        try:
            with machine.autocast():
                output: Output = network(normalize(machine.to_device(image)[None]))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            height, width = mask.shape
            raise DataError(
                f"a validation image of {width}x{height} does not fit into memory: {REMEDY}"
            ) from error
        prediction = output.logits[0].max(dim=0).indices.to(torch.uint8).cpu().numpy()
        found = confusion_matrix(
            mask.numpy(), prediction, num_classes=len(classes), ignore_index=classes.ignore_index
        )
        matrix += found
        if worst is not None:
            worst.add(index, image.permute(1, 2, 0).numpy(), mask.numpy(), prediction, found)
    network.train(was_training)
    counts = torch.from_numpy(matrix).to(machine.device)
    return machine.sum(counts).cpu().numpy()
