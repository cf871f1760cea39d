"""Features of sampled pixels: computed once by the frozen encoder, the same pixels in every view of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmtool.images import UInt8Array
from gmtool.nn.model import GuidedMixNet, normalize


@dataclass(frozen=True)
class View:
    """One way to look at an image."""

    scale: float
    """Factor of height and width, beside the network's own `input_scale`."""
    flip: bool
    """Whether it is mirrored, left to right."""


@dataclass(frozen=True)
class Pixels:
    """Sampled pixels of one image."""

    rows: Tensor
    """(n,) int64."""
    columns: Tensor
    """(n,) int64."""
    labels: Tensor
    """(n,) int64 class indices; the ignore index where there is no label."""


@dataclass(frozen=True)
class Bank:
    """Features of the sampled pixels of a set of images."""

    features: tuple[Tensor, ...]
    """One (N, D) float16 a view; row i is the same pixel in each."""
    labels: Tensor
    """(N,) int64 class indices; the ignore index where there is no label."""
    images: Tensor
    """(N,) int64: index of the image that a pixel is of."""
    teacher: Tensor | None = None
    """(N, K) float32 class probabilities of a teacher from another run; None without one."""
    drawn: Tensor | None = None
    """(256,): the pixels of each label were drawn in proportion to it; None: all alike."""

    @property
    def bytes(self) -> int:
        """Memory of the features."""
        return sum(each.numel() * each.element_size() for each in self.features)

    def rows(self, wanted: Tensor) -> Bank:
        """Return the pixels at `wanted`: indices, or (N,) bool."""
        teacher = None if self.teacher is None else self.teacher[wanted]
        features = tuple(each[wanted] for each in self.features)
        return Bank(features, self.labels[wanted], self.images[wanted], teacher, self.drawn)


def views_of(scales: Sequence[float]) -> tuple[View, ...]:
    """Return each scale as it is and mirrored; scale 1 first, which is what the network sees when it predicts."""
    ordered = sorted(scales, key=lambda scale: abs(math.log(scale)))
    return tuple(View(scale, flip) for scale in ordered for flip in (False, True))


def any_pixels(size: tuple[int, int], count: int, *, ignore_index: int, random: np.random.Generator) -> Pixels:
    """Draw pixels of an unlabeled image of `size` (height, width), with replacement."""
    height, width = size
    rows, columns = random.integers(height, size=count), random.integers(width, size=count)
    return Pixels(torch.from_numpy(rows), torch.from_numpy(columns), torch.full((count,), ignore_index))


def labeled_pixels(
    mask: UInt8Array, weights: Tensor, count: float, *, mean_weight: float, random: np.random.Generator
) -> Pixels:
    """Draw pixels of a labeled image, with replacement, in proportion to the weights of their classes.

    Args:
        mask: (H, W) class indices and the ignore index.
        weights: (256,) weight of each label; 0 for the ignore index.
        count: Pixels of an image whose weights sum to `mean_weight`; others get more or fewer.
        mean_weight: Sum of the pixels' weights in an image, mean over the images.
        random: Source of the draw.
    """
    weight = weights.numpy()[mask.reshape(-1)]
    total = float(weight.sum())
    if total == 0:
        nothing = torch.empty(0, dtype=torch.int64)
        return Pixels(nothing, nothing, nothing)
    number = max(1, round(count * total / mean_weight))
    edges = np.cumsum(weight, dtype=np.float64)
    drawn = np.searchsorted(edges, random.random(number) * edges[-1], side="right").clip(max=weight.size - 1)
    labels = torch.from_numpy(mask.reshape(-1)[drawn].astype(np.int64))
    rows, columns = np.divmod(drawn, mask.shape[1])
    return Pixels(torch.from_numpy(rows), torch.from_numpy(columns), labels)


class BankBuilder:
    """Collects the features of one image after another.

    Args:
        network: In evaluation mode, with the decoder `pyramid`.
        views: What is computed of each image.
        bf16: Compute the encoder in bfloat16.
        teacher: Network whose probabilities are kept, too.
    """

    def __init__(
        self,
        network: GuidedMixNet,
        views: Sequence[View],
        *,
        bf16: bool = False,
        teacher: nn.Module | None = None,
    ) -> None:
        assert not network.training  # batch statistics of single images are not those of the encoder
        self._network, self._views, self._bf16, self._teacher = network, views, bf16, teacher
        self._probabilities: list[Tensor] = []
        self._features: list[list[Tensor]] = [[] for _ in views]
        self._labels: list[Tensor] = []
        self._images: list[Tensor] = []

    @property
    def num_images(self) -> int:
        """Images that were added."""
        return len(self._images)

    def add(self, image: UInt8Array, pixels: Pixels) -> None:
        """Add the pixels of one image (H, W, 3)."""
        for view, features in zip(self._views, self._features, strict=True):
            features.append(features_at(self._network, image, view, pixels.rows, pixels.columns, bf16=self._bf16))
        if self._teacher is not None:
            self._probabilities.append(probabilities_at(self._teacher, image, pixels.rows, pixels.columns))
        self._images.append(torch.full((len(pixels.labels),), len(self._images)))
        self._labels.append(pixels.labels)

    def build(self) -> Bank:
        """Return what was collected; the builder is empty then."""
        # The parts of a view are freed before those of the next one are joined
        features = tuple(torch.cat(self._features.pop(0)) for _ in self._views)
        teacher = torch.cat(self._probabilities) if self._probabilities else None
        return Bank(features, torch.cat(self._labels), torch.cat(self._images), teacher)


@torch.inference_mode()
def features_at(
    network: GuidedMixNet, image: UInt8Array, view: View, rows: Tensor, columns: Tensor, *, bf16: bool = False
) -> Tensor:
    """Return what the decoder's projections see at some pixels of one view of an image: (n, D) float16.

    Args:
        network: In evaluation mode, with the decoder `pyramid`.
        image: (H, W, 3) RGB.
        view: Scale and mirroring.
        rows: (n,) of the pixels, in the image as it is.
        columns: The same.
        bf16: Compute the encoder in bfloat16.
    """
    height, width = image.shape[:2]
    scale = view.scale * network.input_scale
    scaled_height, scaled_width = max(1, round(height * scale)), max(1, round(width * scale))
    if (scaled_height, scaled_width) != (height, width):
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (scaled_width, scaled_height), interpolation=how)  # type: ignore[assignment]
    if view.flip:
        image = np.ascontiguousarray(image[:, ::-1])
    device = next(network.parameters()).device
    x = normalize(torch.from_numpy(image).to(device).permute(2, 0, 1)[None])
    multiple = network.encoder.multiple
    below, right = -scaled_height % multiple, -scaled_width % multiple
    padded = F.pad(x, (0, right, 0, below)).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        features = network.encoder(padded)
    maps = network.decoder.levels([each.float() for each in features])  # type: ignore[operator]
    # The middle of each pixel, in [-1, 1] of the padded view
    y = (rows.to(device).float() + 0.5) * scaled_height / height
    x_middle = (columns.to(device).float() + 0.5) * scaled_width / width
    if view.flip:
        x_middle = scaled_width - x_middle
    grid = torch.stack([x_middle / (scaled_width + right), y / (scaled_height + below)], dim=-1) * 2 - 1
    at = [
        F.grid_sample(each, grid[None, None], padding_mode="border", align_corners=False)[0, :, 0].T
        for each in maps
    ]
    return torch.cat(at, dim=1).half().cpu()


@torch.inference_mode()
def probabilities_at(teacher: nn.Module, image: UInt8Array, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the class probabilities that a network gives some pixels of an image (H, W, 3): (n, K) float32."""
    device = next(teacher.parameters()).device
    x = normalize(torch.from_numpy(image).to(device).permute(2, 0, 1)[None])
    logits: Tensor = teacher(x).logits[0]
    return logits[:, rows.to(device), columns.to(device)].T.float().softmax(dim=1).cpu()
