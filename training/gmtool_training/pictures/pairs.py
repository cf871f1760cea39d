"""Picture of one batch of the run's recipe, computed by the functions of the training step."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from gmtool.classes import ClassSet
from gmtool.config import MethodConfig
from gmtool.images import IMAGENET_MEAN, IMAGENET_STD, UInt8Array
from gmtool.masks.png import PNG_COMPRESSION
from gmtool.nn.model import Output, normalize
from gmtool_training.data.batches import LabeledBatch, UnlabeledBatch
from gmtool_training.method.batchnorm import frozen_statistics
from gmtool_training.method.draws import draw_step
from gmtool_training.method.step import labeled_predictions, teacher_of
from gmtool_training.method.unlabeled import Target, pixel_weights, predict_view
from gmtool_training.pictures.sheet import MaskTile, Tile, draw_sheet

PICTURE_NAME = "pairs.png"
MAX_ROWS = 4
SEED = 0
"""Seed of the picture's random numbers: the same batch gives the same picture."""

NOTE = "Paler: less certain, or counts less. The unlabeled loss pulls the prediction to the pseudo mask."


def draw_pairs(
    network: nn.Module,
    average: nn.Module | None,
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch,
    *,
    method: MethodConfig,
    classes: ClassSet,
    lam: float,
    class_weights: Tensor | None = None,
) -> bytes:
    """Return a PNG with a row for each of up to 4 unlabeled images.

    Columns: labeled partner, its mask and the mixed image if the method mixes; the unlabeled image; the strong
    view if the method has one; the pseudo mask; its weighted pixels unless all weigh alike; the prediction.
    Networks and global random state do not change.

    Args:
        network: On any device, in any mode.
        average: Running mean of its weights, or None.
        labeled: Labeled batch, on any device.
        unlabeled: Unlabeled batch, on any device.
        method: Switches of the method.
        classes: Palette and names.
        lam: Share of the labeled image in the mixed one, in [0, 0.5).
        class_weights: (C,), those of `method.balance`.
    """
    # Targets and prediction
    device = next(network.parameters()).device
    labeled = LabeledBatch(*(part.to(device) for part in labeled))
    unlabeled = UnlabeledBatch(*(part.to(device) for part in unlabeled))
    target, prediction = compute_target(network, average, labeled, unlabeled, method=method, lam=lam)
    pseudo, weights = target.pseudo, pixel_weights(target, method, class_weights)
    # Ideal mixing leaves 1 - λ of the unlabeled image's probabilities
    scaled = method.pseudo == "direct" or (method.decoupling == "soft" and method.normalize)
    # Columns
    columns: dict[str, list[Tile]] = {}
    if target.source.partners is not None:
        partners = target.source.partners
        columns["labeled partner"] = [_to_array(labeled.images[row]) for row in partners]
        columns["its mask"] = [MaskTile(labeled.masks[row].cpu().numpy()) for row in partners]
    columns["unlabeled image"] = [_to_array(image) for image in unlabeled.images]
    if target.source.mixed is not None:
        columns[f"mixed, λ = {lam:.2f}"] = _to_pictures(target.source.mixed)
    if method.view == "strong":
        columns["strong view"] = _to_pictures(target.images)
    columns[_title(method)] = [_likeliest(mask, full=1.0 if scaled else 1 - lam) for mask in pseudo]
    if weights is not None:
        share = (weights / weights.max().clamp(min=1e-6)).float().cpu().numpy()
        labels = pseudo.argmax(dim=1).to(torch.uint8).cpu().numpy()
        columns["what counts"] = [MaskTile(*pair) for pair in zip(labels, share, strict=True)]
    columns["prediction"] = [_likeliest(mask, full=1.0) for mask in prediction]
    # Sheet
    rows = list(zip(*(tiles[:MAX_ROWS] for tiles in columns.values()), strict=True))
    buffer = io.BytesIO()
    sheet = draw_sheet(tuple(columns), rows, classes=classes, note=NOTE)
    sheet.save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


@torch.no_grad()
def compute_target(
    network: nn.Module,
    average: nn.Module | None,
    labeled: LabeledBatch,
    unlabeled: UnlabeledBatch,
    *,
    method: MethodConfig,
    lam: float,
) -> tuple[Target, Tensor]:
    """Return the target of `guidedmix_step` for a batch, and the network's probabilities for it, (B, C, H, W).

    Networks do not change. Random numbers come from a generator with the seed `SEED`.
    """
    random = np.random.default_rng(SEED)
    drawn = draw_step(random, method, labeled=len(labeled.images), unlabeled=unlabeled.images, lam=lam)
    x_l, x_u = normalize(labeled.images), normalize(unlabeled.images)
    frozen_average = frozen_statistics(network if average is None else average)
    with _training_mode(network), frozen_statistics(network), frozen_average:
        joint: Output | None = network(torch.cat([x_l, x_u])) if method.batch_norm == "joint" else None
        out_l: Output = network(x_l) if joint is None else Output(*(part[: len(x_l)] for part in joint))
        target, out_u = predict_view(
            network,
            teacher_of(network, average, labeled_predictions(x_l, out_l), drawn, method),
            unlabeled.images,
            inside=unlabeled.inside,
            joint=None if joint is None else Output(*(part[len(x_l) :] for part in joint)),
        )
    return target, torch.softmax(out_u.logits.float(), dim=1)


def _title(method: MethodConfig) -> str:
    """Return the column title of the pseudo mask."""
    mask = "pseudo mask" if method.pseudo == "direct" else "decoupled pseudo mask"
    return mask + (", pasted" if method.view == "strong" and method.cutmix else "")


@contextmanager
def _training_mode(network: nn.Module) -> Iterator[None]:
    """Set every module to training mode within the block."""
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _likeliest(mask: Tensor, *, full: float) -> MaskTile:
    """Return the class with the largest value of (C, H, W), and that value over `full`, clamped to [0, 1]."""
    value, label = mask.float().cpu().max(dim=0)
    return MaskTile(label.to(torch.uint8).numpy(), (value / full).clamp(0, 1).numpy())


def _to_pictures(images: Tensor) -> list[Tile]:
    """Return normalised images (B, 3, H, W) as uint8 pictures (H, W, 3)."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    return [_to_array((image.float().cpu() * std + mean) * 255) for image in images]


def _to_array(image: Tensor) -> UInt8Array:
    """Return an image (3, H, W) of 0-255 as (H, W, 3) uint8."""
    return image.float().cpu().round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
