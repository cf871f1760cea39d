"""Class weights from the frequency of classes in the labeled masks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from gmtool.classes import ClassSet
from gmtool.config import TrainConfig
from gmtool.console import remark
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.errors import DataError
from gmtool.report.metrics import Int64Array


def labeled_class_weights(samples: Sequence[Sample], classes: ClassSet, config: TrainConfig) -> Tensor | None:
    """Return the class weights of `method.balance`, (C,) float32, from the labeled masks; None if it is 0.

    Raises:
        DataError: A mask cannot be read, or no mask has a pixel of a class.
    """
    if not config.method.balance:
        return None

    def count(sample: Sample) -> Int64Array:
        mask = read_truth(sample, classes, values=config.data.mask_values, size=sample.image_size())
        return np.bincount(mask.ravel(), minlength=256)[: len(classes)]

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        pixels = sum(pool.map(count, samples), np.zeros(len(classes), dtype=np.int64))
    weights = class_weights(pixels, balance=config.method.balance)
    least, most = (
        f"{weights[place]:.3g} ({classes.names[place]})" for place in (weights.argmin(), weights.argmax())
    )
    remark(f"class weights: {least} to {most}")
    return weights


def class_weights(pixels: Int64Array, *, balance: float) -> Tensor:
    """Return class weights, (C,) float32: (share of the pixels) ** -balance, scaled to mean 1 over pixels.

    Args:
        pixels: Pixels of each class, (C,). A class without pixels gets the largest weight of the others.
        balance: Exponent in [0, 1]. 0: all pixels weigh the same; 1: all classes do.

    Raises:
        DataError: No pixel of any class.
    """
    if not pixels.any():
        raise DataError("method.balance: the labeled masks have no pixel of any class")
    share = pixels / pixels.sum()
    weights = np.maximum(share, share[share > 0].min()) ** -balance
    return torch.from_numpy(weights / (share * weights).sum()).float()
