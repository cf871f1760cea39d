"""Choice of images from measurements: uncertain, rare classes first, unlike each other and the labeled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gmtool.images import UInt8Array
from gmtool_serving.select.appearance import Float32Array
from gmtool_serving.select.certainty import NEED_LOGITS, Strategy
from gmtool_serving.select.measure import Measures

MAX_WEIGHT = 4.0
"""Largest weight of a rare class."""
CHUNK = 4096
"""Images whose distances are computed at once; bounds memory."""


@dataclass
class Choice:
    """Chosen images, and values of all."""

    score: Float32Array
    """(N,): value that the strategy ranks by, before distances."""
    distance: Float32Array
    """(N,): to the nearest labeled or chosen image; of a chosen one when it was chosen. NaN: none was compared."""
    chosen: list[int] = field(default_factory=list)
    """Places, the most wanted first."""
    duplicate_of: dict[int, int] = field(default_factory=dict)
    """Place of the labeled or chosen image by place of its near-duplicate."""


def class_weights(measures: Measures) -> Float32Array:
    """Return the weight of each class, (C,): sqrt(mean share / share) over the predicted masks, at most 4.

    Classes that are predicted nowhere have weight 0: no pixel has them.
    """
    share = measures.shares[measures.is_measured].mean(axis=0)
    present = share > 0
    weights: Float32Array = np.zeros_like(share)
    weights[present] = np.sqrt(1 / (np.count_nonzero(present) * share[present])).clip(max=MAX_WEIGHT)
    return weights


def embedding_of(measures: Measures) -> Float32Array | npt.NDArray[np.float16]:
    """Return the vectors of the images, between which distances are measured.

    With embeddings of the model those, (N, D), in units of their deviation over the pool and of length 1. Else
    roots of the class shares, and the appearance, (N, C + APPEARANCE_SIZE). Both halves have length 1 at most:
    distances are in [0, 2]. The roots make them Hellinger distances of the class shares, in which a small object
    counts more than by its area.
    """
    if measures.embedding is not None:
        return _scaled(measures.embedding, measures.is_measured)
    return np.concatenate([np.sqrt(measures.shares), measures.appearance], axis=1)


def _scaled(vectors: npt.NDArray[np.float16], is_measured: npt.NDArray[np.bool_]) -> npt.NDArray[np.float16]:
    """Return vectors with mean 0 and deviation 1 over the measured images, then length 1; chunks bound memory."""
    known = np.flatnonzero(is_measured)
    chunks = [known[start : start + CHUNK] for start in range(0, len(known), CHUNK)]
    mean = sum(vectors[part].sum(axis=0, dtype=np.float64) for part in chunks) / len(known)
    squares = sum(((vectors[part] - mean) ** 2).sum(axis=0) for part in chunks) / len(known)
    deviation = np.sqrt(squares).clip(min=1e-6)
    scaled = np.zeros_like(vectors)
    for part in chunks:
        found = (vectors[part] - mean) / deviation
        scaled[part] = found / np.linalg.norm(found, axis=1, keepdims=True).clip(min=1e-6)
    return scaled


def choose(
    measures: Measures,
    count: int,
    *,
    strategy: Strategy,
    labeled: Sequence[int],
    seed: int,
    duplicate_levels: float,
) -> Choice:
    """Choose up to `count` images.

    `mixed`: the largest product of weighted uncertainty and distance to labeled and chosen images, one after the
    other. `entropy`, `margin`, `bald`: the largest mean uncertainty. `coreset`: the largest distance (k-centre
    greedy, Sener and Savarese 2018). `kmeans++`: drawn in proportion to the squared distance (Arthur and
    Vassilvitskii 2007). `random`: a seeded order. All but `random` skip near-duplicates of labeled and chosen
    images. Ties are broken in a seeded order.

    Args:
        measures: Measurements of the pool.
        count: Images wanted.
        strategy: See above.
        labeled: Places of the labeled images: not chosen, and the first centres.
        seed: Seed of random orders.
        duplicate_levels: Images are near-duplicates if their thumbnails differ by less, root mean square of the
            levels of 0 to 255; 0 for none.
    """
    size = len(measures.images)
    random = np.random.default_rng(seed)
    order = random.permutation(size)
    score = _score(measures, strategy, order)
    choice = Choice(score, np.full(size, np.nan, dtype=np.float32))
    free = measures.is_measured.copy()
    known = [place for place in labeled if measures.is_measured[place]]
    free[list(labeled)] = False
    spreads = strategy in ("mixed", "coreset", "kmeans++")
    embedding = embedding_of(measures) if spreads else None
    limit = 0.0 if strategy == "random" else duplicate_levels
    # Compare with the labeled images, then with each chosen one
    _compare(choice, measures, embedding, known, free, limit)
    while len(choice.chosen) < count and free.any():
        value = score * choice.distance if spreads and not np.isnan(choice.distance[free]).any() else score
        if strategy == "kmeans++":
            place = _draw(np.where(free, value, 0).astype(np.float64) ** 2, free, random)
        else:
            ranked = np.where(free, value, -np.inf)[order]
            place = int(order[int(ranked.argmax())])
        choice.chosen.append(place)
        free[place] = False
        _compare(choice, measures, embedding, [place], free, limit)
    return choice


def _draw(weights: npt.NDArray[np.float64], free: npt.NDArray[np.bool_], random: np.random.Generator) -> int:
    """Return a free place drawn in proportion to its weight; evenly if all weights are zero."""
    total = weights.sum()
    return int(random.choice(len(weights), p=weights / total if total > 0 else free / free.sum()))


def _score(measures: Measures, strategy: Strategy, order: npt.NDArray[np.int64]) -> Float32Array:
    if strategy == "mixed":
        return measures.doubt @ class_weights(measures)
    if strategy in NEED_LOGITS:
        total: Float32Array = measures.doubt.sum(axis=1)
        return total
    if strategy in ("coreset", "kmeans++"):
        return np.ones(len(order), dtype=np.float32)
    rank = np.empty(len(order), dtype=np.float32)
    rank[order] = np.linspace(1, 0, len(order), dtype=np.float32)
    return rank


def _compare(
    choice: Choice,
    measures: Measures,
    embedding: Float32Array | npt.NDArray[np.float16] | None,
    centres: Sequence[int],
    free: npt.NDArray[np.bool_],
    limit: float,
) -> None:
    """Update distances to new centres, and take their near-duplicates out of `free`."""
    if not centres:
        return
    if embedding is not None:
        nearest, _ = nearest_of(embedding, embedding[centres])
        choice.distance[free] = np.fmin(choice.distance, nearest)[free]
    if limit > 0:
        difference, closest = nearest_of(measures.thumbnails, measures.thumbnails[centres])
        near = free & (difference / np.sqrt(measures.thumbnails.shape[1]) < limit)
        for place in np.flatnonzero(near).tolist():
            choice.duplicate_of[place] = centres[int(closest[place])]
        free &= ~near


def nearest_of(
    vectors: Float32Array | npt.NDArray[np.float16] | UInt8Array,
    centres: Float32Array | npt.NDArray[np.float16] | UInt8Array,
) -> tuple[Float32Array, npt.NDArray[np.int64]]:
    """Return the Euclidean distance to the nearest centre, (N,), and its index, (N,).

    Args:
        vectors: (N, D).
        centres: (M, D), at least one.
    """
    targets = centres.astype(np.float32)
    distance = np.empty(len(vectors), dtype=np.float32)
    index = np.empty(len(vectors), dtype=np.int64)
    lengths = (targets**2).sum(axis=1)
    for start in range(0, len(vectors), CHUNK):
        part = slice(start, start + CHUNK)
        chunk = vectors[part].astype(np.float32)
        squared = (chunk**2).sum(axis=1)[:, None] + lengths - 2 * (chunk @ targets.T)
        index[part] = squared.argmin(axis=1)
        # The difference of large numbers is not exact for close vectors: the nearest one is computed anew
        distance[part] = np.linalg.norm(chunk - targets[index[part]], axis=1)
    return distance, index
