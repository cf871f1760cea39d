"""What the method does with one batch, as a picture: partners, mixed images, and the pseudo masks they give."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gmtool.classes import ClassSet
from gmtool.config import MethodConfig
from gmtool.images import UInt8Array
from gmtool.masks import PNG_COMPRESSION
from gmtool.nn.model import Output, normalize
from gmtool_training.batchnorm import frozen_statistics
from gmtool_training.data import LabeledBatch
from gmtool_training.mixing import decouple, mix_pairs, nearest_partners, random_partners
from gmtool_training.sheet import MaskTile, Tile, draw_sheet

PICTURE_NAME = "pairs.png"
MAX_ROWS = 4

NOTE = "Paler: less certain. The decoupled pseudo mask is what the unlabeled loss pulls the direct prediction to."


@dataclass(frozen=True)
class Pairs:
    """One batch as the unlabeled part of a step sees it; row i is the i-th unlabeled image. All on the CPU."""

    partners: Tensor
    """(B, K) indices of each one's labeled partners, nearest first."""
    lam: float
    decoupled: Tensor
    """(B, C, H, W) pseudo masks decoupled from the predictions for the mixed images."""
    direct: Tensor
    """(B, C, H, W) probabilities predicted for the unlabeled images themselves."""


def draw_pairs(
    network: nn.Module,
    labeled: LabeledBatch,
    unlabeled: Tensor,
    *,
    method: MethodConfig,
    classes: ClassSet,
    lam: float,
) -> bytes:
    """Return a PNG with a row for each of up to 4 unlabeled images.

    A row: labeled partner and its mask, the unlabeled image, the mixed image, the decoupled pseudo mask and
    the direct prediction. The network is left as it was, and no global random state is drawn from.

    Args:
        network: On any device, in any mode.
        labeled: One batch; it may lie on another device.
        unlabeled: (B, 3, H, W) uint8 RGB.
        method: Pairing, decoupling and batch normalisation, as in the step.
        classes: Palette and names.
        lam: Share of the labeled image in the mixed one, in [0, 0.5).
    """
    pairs = compute_pairs(network, labeled, unlabeled, method=method, lam=lam)
    rows: list[list[Tile]] = []
    for index in range(min(MAX_ROWS, len(unlabeled))):
        partners = pairs.partners[index]
        minor = _to_array(labeled.images[partners].float().mean(dim=0).round().to(torch.uint8))
        major = _to_array(unlabeled[index])
        # The share that ideal mixing leaves of the unlabeled image's certainty
        full = 1.0 if method.decoupling == "soft" and method.normalize else 1 - lam
        rows.append(
            [
                minor,
                MaskTile(labeled.masks[partners[0]].cpu().numpy()),
                major,
                np.rint(lam * minor + (1 - lam) * major).astype(np.uint8),
                _likeliest(pairs.decoupled[index], full=full),
                _likeliest(pairs.direct[index], full=1.0),
            ]
        )
    titles = (
        "labeled partner",
        "its mask",
        "unlabeled image",
        f"mixed, λ = {lam:.2f}",
        "decoupled pseudo mask",
        "direct prediction",
    )
    buffer = io.BytesIO()
    draw_sheet(titles, rows, classes=classes, note=NOTE).save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


@torch.no_grad()
def compute_pairs(
    network: nn.Module, labeled: LabeledBatch, unlabeled: Tensor, *, method: MethodConfig, lam: float
) -> Pairs:
    """Pair, mix and decouple one batch as `guidedmix_step` does, without a trace in the network.

    Random partners are drawn with a seed of their own: the same batch gives the same pairs.
    """
    device = next(network.parameters()).device
    x_l, x_u = normalize(labeled.images.to(device)), normalize(unlabeled.to(device))
    with _training_mode(network), frozen_statistics(network):
        if method.batch_norm == "joint":
            joint: Output = network(torch.cat([x_l, x_u]))
            out_l, out_u = (Output(*(part[rows] for part in joint)) for rows in _halves(len(x_l)))
        else:
            out_l, out_u = network(x_l), network(x_u)
        if method.pairing == "similar":
            partners = nearest_partners(out_u.embedding, out_l.embedding, count=method.partners)
        else:
            random = np.random.default_rng(0)
            partners = random_partners(len(x_u), len(x_l), random, count=method.partners).to(device)
        out_mix: Output = network(mix_pairs(x_l[partners].mean(dim=1), x_u, lam))
    m_l, m_u, m_mix = (torch.softmax(out.logits.float(), dim=1) for out in (out_l, out_u, out_mix))
    m_dec = decouple(m_mix, m_l[partners].mean(dim=1), lam, method=method)
    return Pairs(partners.cpu(), lam, m_dec.cpu(), m_u.cpu())


def _halves(count: int) -> tuple[slice, slice]:
    return slice(None, count), slice(count, None)


@contextmanager
def _training_mode(network: nn.Module) -> Iterator[None]:
    """Put every module into training mode, and back into its own."""
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _likeliest(mask: Tensor, *, full: float) -> MaskTile:
    """Return the class of the largest value of (C, H, W), and that value as a share of `full`."""
    value, label = mask.max(dim=0)
    return MaskTile(label.to(torch.uint8).numpy(), (value / full).clamp(0, 1).numpy())


def _to_array(image: Tensor) -> UInt8Array:
    return image.cpu().permute(1, 2, 0).numpy()
