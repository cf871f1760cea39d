"""Scoring the network on whole images while it trains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from gmtool.classes import ClassSet
from gmtool.config import DataConfig
from gmtool.datasets import Split
from gmtool.metrics import Int64Array, confusion_matrix
from gmtool.nn.model import Output, normalize
from gmtool_training.data import LabeledReader, whole_images


@torch.no_grad()
def validate(
    fabric: Fabric,
    network: nn.Module,
    split: Split,
    *,
    classes: ClassSet,
    config: DataConfig,
    before_image: Callable[[], None],
    read: LabeledReader | None = None,
) -> Int64Array:
    """Return the confusion matrix over a split: whole images at their own size, one scale, no flip.

    `before_image` is called before each image and may raise. Images come from `read`, or from their files.
    The network is back in training mode afterwards.
    """
    network.eval()
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for image, mask in whole_images(split.samples, classes, config, read=read):
        before_image()
        output: Output = network(normalize(fabric.to_device(image)[None]))
        prediction = output.logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
        matrix += confusion_matrix(
            mask.numpy(), prediction, num_classes=len(classes), ignore_index=classes.ignore_index
        )
    network.train()
    return matrix
