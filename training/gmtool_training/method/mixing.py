"""Pairing, mixing and decoupling of GuidedMix-Net, as pure functions of tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gmtool.config import MethodConfig


def nearest_partners(queries: Tensor, keys: Tensor, *, count: int = 1) -> Tensor:
    """Return for each query the indices of the nearest keys by Euclidean distance (Eq. 3), nearest first.

    Args:
        queries: Pooled encoder features (Q, D).
        keys: Pooled encoder features (K, D); one may be the partner of several queries.
        count: Partners of a query, different ones; at most K.

    Returns:
        Indices (Q, count) into `keys`.
    """
    return torch.cdist(queries.float(), keys.float()).topk(count, dim=1, largest=False).indices


def nearest_others(features: Tensor) -> Tensor:
    """Return for each row (N, D) the index of the nearest other row; N is at least 2."""
    distances = torch.cdist(features.float(), features.float())
    return distances.fill_diagonal_(float("inf")).argmin(dim=1)


def random_partners(num_queries: int, num_keys: int, random: np.random.Generator, *, count: int = 1) -> Tensor:
    """Return for each query `count` different indices drawn from `num_keys`: (num_queries, count)."""
    return torch.from_numpy(random.random((num_queries, num_keys)).argsort(axis=1)[:, :count].copy())


def random_others(num_images: int, random: np.random.Generator) -> Tensor:
    """Return for each of at least 2 images the index of another one, drawn at random."""
    steps = random.integers(1, num_images, size=num_images)
    return torch.from_numpy((np.arange(num_images) + steps) % num_images)


def draw_lambda(random: np.random.Generator, *, bound: float) -> float:
    """Draw the mixing coefficient: Beta(1, 1), folded to the smaller side, redrawn until below `bound`."""
    while True:
        drawn = float(random.beta(1, 1))
        folded = min(drawn, 1 - drawn)
        if folded < bound:
            return folded


def mix_pairs(minor: Tensor, major: Tensor, lam: float) -> Tensor:
    """Blend images pairwise: lam * minor + (1 - lam) * major (Eq. 2, minor being the labeled image).

    Args:
        minor: Images (B, 3, H, W), normalised float32; the part with weight `lam`.
        major: Images of the same shape; row i is paired with row i of `minor`.
        lam: Weight of `minor`, in [0, 0.5).

    Returns:
        Mixed images (B, 3, H, W).
    """
    return lam * minor + (1 - lam) * major


def decouple(mixed: Tensor, minor: Tensor, lam: float, *, method: MethodConfig) -> Tensor:
    """Take the minor part's prediction out of the mixed one's: the pseudo mask of the major part.

    Soft (Eq. 8): `mixed - lam * minor`. Hard (Eq. 7): `mixed - minor`. If mixing were ideal, soft would
    give (1 - lam) times the major part's probabilities, which `method.normalize` divides by (1 - lam),
    and hard (1 - lam) times the difference of the two.

    Args:
        mixed: Probabilities for the mixed images, (B, C, H, W).
        minor: Probabilities for the images that had weight `lam`, (B, C, H, W).
        lam: The mixing coefficient.
        method: Decides on soft or hard, and on normalisation.

    Returns:
        The decoupled mask (B, C, H, W).
    """
    if method.decoupling == "hard":
        return mixed - minor
    soft = mixed - lam * minor
    return soft / (1 - lam) if method.normalize else soft
