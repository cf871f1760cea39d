"""Picture of unlabeled images with the teacher's pseudo labels and what counts of them in self-training."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gmtool.classes import ClassSet
from gmtool.data.datasets import Split
from gmtool.errors import DataError
from gmtool.images import UInt8Array
from gmtool.masks.png import PNG_COMPRESSION
from gmtool.nn.model import GuidedMixNet, normalize
from gmtool_training.data.readers import ImageReader
from gmtool_training.pictures.sheet import TILE_PX, MaskTile, Tile, draw_sheet
from gmtool_training.probe.bank import Bank, View, features_at, probabilities_at
from gmtool_training.probe.head import Head
from gmtool_training.probe.self_training import PseudoOptions, PseudoWeights, SelfTrained, shares_of_rounds

MAX_ROWS = 4
GRID_PX = TILE_PX // 2
"""Pixels along the longer side of an image at which the teacher is asked."""


@dataclass(frozen=True)
class Teaching:
    """How the unlabeled images are labeled in the last round of self-training."""

    head: Head
    """The teacher."""
    other: nn.Module | None
    """Network of another run that is the teacher instead; None without one."""
    weights: PseudoWeights
    """What counts, and how much."""
    views: tuple[View, ...]
    """Views of an image over which the teacher's probabilities are averaged."""
    is_used: bool
    """False if unlabeled images were left out."""

    @classmethod
    def of(
        cls,
        trained: SelfTrained,
        other: nn.Module | None,
        unlabeled: Bank,
        options: PseudoOptions,
        views: tuple[View, ...],
        *,
        rounds: int,
    ) -> Teaching:
        """Return the teaching in a self-training, or, with the head of labels alone, what it would have been."""
        taken = views[: len(unlabeled.features)]
        weights = PseudoWeights.of(trained.found, options, share=shares_of_rounds(rounds)[-1])
        return cls(trained.teacher, other, weights, taken, is_used=len(trained.heads) > 1)

    def probabilities(
        self, network: GuidedMixNet, image: UInt8Array, rows: Tensor, columns: Tensor, *, bf16: bool
    ) -> Tensor:
        """Return the teacher's class probabilities at some pixels of an image: (n, K)."""
        if self.other is not None:
            return probabilities_at(self.other, image, rows, columns)
        each = [
            self.head.probabilities([features_at(network, image, view, rows, columns, bf16=bf16)])
            for view in self.views
        ]
        return torch.stack(each).mean(dim=0)


def draw_unlabeled(
    network: GuidedMixNet,
    split: Split,
    read: ImageReader,
    teaching: Teaching,
    *,
    classes: ClassSet,
    autocast: Callable[[], AbstractContextManager[object]],
    bf16: bool,
) -> bytes | None:
    """Return a PNG with a row for each of up to 4 unlabeled images; None if none can be read.

    Columns: the image, the teacher's pseudo mask (paler: less certain), what counts of it, and the prediction of
    the fitted network. Images of another shape than the first one are cropped to it.

    Args:
        network: The fitted network.
        split: Unlabeled images.
        read: Reader of these images.
        teaching: Teacher and options of the last round.
        classes: Palette and names.
        autocast: Returns a context of the network's precision.
        bf16: Whether features are computed in bfloat16.
    """
    rows: list[tuple[Tile, ...]] = []
    shape: tuple[int, int] | None = None
    heaviest = float(teaching.weights.weights.max().clamp(min=1e-6))
    for image in _some_images(split, read):
        shape = shape or (image.shape[0], image.shape[1])
        picture = cropped(image, shape)
        labels, confidence = _pseudo_mask(network, picture, teaching, bf16=bf16)
        share = teaching.weights(torch.from_numpy(confidence), torch.from_numpy(labels).long()).numpy() / heaviest
        with autocast():
            prediction = _prediction(network, picture)
        counting = MaskTile(labels, share.astype(np.float32))
        rows.append((picture, MaskTile(labels, confidence), counting, MaskTile(prediction)))
    if not rows:
        return None
    counts = "what counts" if teaching.is_used else "what would count"
    note = "Paler: less certain, or counts less. The least certain pixels of each class do not count."
    if not teaching.is_used:
        note += " Labels alone did better."
    titles = ("unlabeled image", "pseudo mask", counts, "prediction")
    buffer = io.BytesIO()
    sheet = draw_sheet(titles, rows, classes=classes, note=note)
    sheet.save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


def cropped(image: UInt8Array, shape: tuple[int, int]) -> UInt8Array:
    """Return the middle of an image (H, W, 3) in the proportions of `shape` (height, width)."""
    height, width = image.shape[:2]
    scale = min(height / shape[0], width / shape[1])
    new_height, new_width = (max(1, round(scale * side)) for side in shape)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return np.ascontiguousarray(image[top : top + new_height, left : left + new_width])


def _some_images(split: Split, read: ImageReader) -> list[UInt8Array]:
    """Return images from all over the list; those that cannot be read are left out."""
    count, found = len(split.samples), []
    for index in sorted({place * count // MAX_ROWS for place in range(MAX_ROWS)}):
        try:
            found.append(read(index).copy())
        except DataError:
            continue
    return found


def _pseudo_mask(
    network: GuidedMixNet, image: UInt8Array, teaching: Teaching, *, bf16: bool
) -> tuple[UInt8Array, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """Return the teacher's likeliest classes and their probabilities on a grid over an image, (h, w) each."""
    height, width = image.shape[:2]
    step = max(1.0, max(height, width) / GRID_PX)
    size = max(1, round(height / step)), max(1, round(width / step))
    down, right = (
        ((torch.arange(count) + 0.5) * side / count).long()
        for count, side in zip(size, (height, width), strict=True)
    )
    rows, columns = torch.meshgrid(down, right, indexing="ij")
    found = teaching.probabilities(network, image, rows.reshape(-1), columns.reshape(-1), bf16=bf16)
    confidence, labels = found.max(dim=1)
    return labels.reshape(size).to(torch.uint8).numpy(), confidence.reshape(size).float().numpy()


@torch.no_grad()
def _prediction(network: GuidedMixNet, image: UInt8Array) -> UInt8Array:
    device = next(network.parameters()).device
    logits: Tensor = network(normalize(torch.from_numpy(image).to(device).permute(2, 0, 1)[None])).logits
    labels: UInt8Array = logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    return labels
