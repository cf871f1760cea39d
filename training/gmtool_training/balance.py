"""How much more a pixel of a rare class counts than one of a frequent class."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from gmtool.errors import DataError
from gmtool.metrics import Int64Array
from gmtool_training.readers import LabeledReader


def count_pixels(read: LabeledReader, num_samples: int, num_classes: int) -> Int64Array:
    """Return how many pixels of each class the masks of a split have, (C,).

    Raises:
        DataError: An image or a mask cannot be used.
    """

    def count(index: int) -> Int64Array:
        return np.bincount(read(index)[1].ravel(), minlength=256)[:num_classes]

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        return sum(pool.map(count, range(num_samples)), np.zeros(num_classes, dtype=np.int64))


def class_weights(pixels: Int64Array, *, balance: float) -> Tensor:
    """Return the weight of each class, (C,) float32: (share of the pixels) ** -balance, 1 in the mean over pixels.

    Args:
        pixels: Pixels of each class, (C,). A class without any gets the largest weight of the others.
        balance: 0: all pixels count alike; 1: all classes do.

    Raises:
        DataError: There is no pixel at all.
    """
    if not pixels.any():
        raise DataError("method.balance: the labeled masks have no pixel of any class; expected some to weigh by")
    share = pixels / pixels.sum()
    weights = np.maximum(share, share[share > 0].min()) ** -balance
    return torch.from_numpy(weights / (share * weights).sum()).float()
