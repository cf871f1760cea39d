"""Pairing, mixing and decoupling of GuidedMix-Net, as pure functions of tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gmtool.config import MethodConfig


def nearest_partners(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the index of the nearest key of each query by Euclidean distance (Eq. 3).

    Args:
        queries: Pooled encoder features (Q, D).
        keys: Pooled encoder features (K, D); one may be the partner of several queries.

    Returns:
        Indices (Q,) into `keys`.
    """
    return torch.cdist(queries.float(), keys.float()).argmin(dim=1)


def nearest_others(features: Tensor) -> Tensor:
    """Return the index of the nearest other row of each row of features (N, D), (N,); N is at least 2."""
    distances = torch.cdist(features.float(), features.float())
    return distances.fill_diagonal_(float("inf")).argmin(dim=1)


def random_partners(num_queries: int, num_keys: int, random: np.random.Generator) -> Tensor:
    """Return a random key index for each query, (num_queries,)."""
    return torch.from_numpy(random.random((num_queries, num_keys)).argmin(axis=1))


def random_others(num_images: int, random: np.random.Generator) -> Tensor:
    """Return the index of a random other image for each of at least 2 images, (num_images,)."""
    steps = random.integers(1, num_images, size=num_images)
    return torch.from_numpy((np.arange(num_images) + steps) % num_images)


def draw_lambda(random: np.random.Generator, *, bound: float) -> float:
    """Draw the mixing coefficient: min(b, 1 - b) with b from Beta(1, 1), drawn again until below `bound`."""
    while True:
        drawn = float(random.beta(1, 1))
        folded = min(drawn, 1 - drawn)
        if folded < bound:
            return folded


def mix_pairs(minor: Tensor, major: Tensor, lam: float | Tensor) -> Tensor:
    """Blend images pairwise: lam * minor + (1 - lam) * major (Eq. 2, minor being the labeled image).

    Args:
        minor: Images with weight `lam`, (B, 3, H, W), normalised float32.
        major: Images of the same shape; row i is paired with row i of `minor`.
        lam: Weight of `minor`, in [0, 0.5).

    Returns:
        Mixed images (B, 3, H, W).
    """
    return lam * minor + (1 - lam) * major


def decouple(mixed: Tensor, minor: Tensor, lam: float | Tensor, *, method: MethodConfig) -> Tensor:
    """Subtract the minor image's prediction from the mixed one: the pseudo mask of the major image.

    Soft (Eq. 8): `mixed - lam * minor`; `method.normalize` divides it by 1 - lam. Hard (Eq. 7): `mixed - minor`.
    With ideal mixing, soft is (1 - lam) M_major and hard is (1 - lam) (M_major - M_minor).

    Args:
        mixed: Probabilities of the mixed images, (B, C, H, W).
        minor: Probabilities of the images with weight `lam`, (B, C, H, W).
        lam: Mixing coefficient, in [0, 0.5).
        method: `decoupling` and `normalize` apply.

    Returns:
        Decoupled mask (B, C, H, W); values may be below zero.
    """
    if method.decoupling == "hard":
        return mixed - minor
    soft = mixed - lam * minor
    # Times the reciprocal: a card divides by a number in this way, and by a tensor, as in a graph, in another
    return soft * (1 / (1 - lam)) if method.normalize else soft
