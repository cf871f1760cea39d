"""Label propagation: pseudo labels, corrected by pixels of other images that look alike to the classifier."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool_training.probe.bank import Bank
from gmtool_training.probe.head import Head

NEIGHBORS = 16
"""Pixels of other images whose labels count for a pixel."""
TEMPERATURE = 0.05
"""Of the neighbours' weights: exp(cosine / temperature)."""
SHARE = 0.8
"""Share of the neighbours in a pixel's probabilities; the rest is its own."""
STEPS = 10
"""Times that labels pass from neighbour to neighbour."""
LABELED_ANCHORS, UNLABELED_ANCHORS = 4_096, 12_288
"""Pixels that can be neighbours, at most, or up to twice as many: the time grows with them."""
BLOCK_ROWS = 1_024
"""Pixels whose neighbours are sought at once."""
TRIAL_ROWS = 4_096
"""Pixels whose neighbours are timed."""


@dataclass(frozen=True)
class Neighbors:
    """The most similar anchors of each pixel: labeled and unlabeled pixels of other images."""

    index: Tensor
    """(N, k) int64, into the anchors: the labeled ones, then the unlabeled ones."""
    weight: Tensor
    """(N, k), of sum 1."""


def can_propagate(head: Head) -> bool:
    """Return whether a head has a space of its own in which pixels of a class lie together: a hidden layer."""
    return len(head.layers) > 1


def propagate(head: Head, labeled: Bank, unlabeled: Bank, probabilities: Tensor) -> Tensor:
    """Return class probabilities of unlabeled pixels, (N, K), after labels have passed between similar ones.

    A classifier of few labels errs on whole objects that look a little different. Their pixels lie nearer to those
    of other unlabeled images, some of which it knows, than to its own labels. F <- share * W F + (1 - share) * P,
    where P are the head's probabilities and W are weights of neighbours (Zhou et al., NeurIPS 2003), in the space
    of the hidden layer (Iscen et al., CVPR 2019). Labeled neighbours keep their labels.

    Args:
        head: With a hidden layer.
        labeled: Labeled pixels.
        unlabeled: Unlabeled pixels.
        probabilities: (N, K) of the unlabeled pixels, float32.
    """
    num_classes = probabilities.shape[1]
    known = ((labeled.labels >= 0) & (labeled.labels < num_classes)).nonzero()[:, 0]
    known = known[_some(len(known), LABELED_ANCHORS)]
    anchors = _some(len(unlabeled.images), UNLABELED_ANCHORS)
    neighbors = find_neighbors(head, labeled.features[0][known], unlabeled.features[0], unlabeled.images, anchors)
    fixed = torch.nn.functional.one_hot(labeled.labels[known], num_classes).float()
    found = probabilities
    for _ in range(STEPS):
        values = torch.cat([fixed, found[anchors]])
        of_neighbors = [
            (values[index] * weight[..., None]).sum(dim=1)
            for index, weight in zip(
                torch.split(neighbors.index, BLOCK_ROWS), torch.split(neighbors.weight, BLOCK_ROWS), strict=True
            )
        ]
        found = SHARE * torch.cat(of_neighbors) + (1 - SHARE) * probabilities
    return found


@torch.inference_mode()
def find_neighbors(
    head: Head, labeled: Tensor, unlabeled: Tensor, images: Tensor, anchors: Tensor, *, count: int | None = None
) -> Neighbors:
    """Return the `NEIGHBORS` nearest anchors of unlabeled pixels, by the cosine of their hidden layers.

    Args:
        head: With a hidden layer.
        labeled: (L, D) features of labeled anchors.
        unlabeled: (N, D) features of unlabeled pixels.
        images: (N,) the image of each; none of its own is a pixel's neighbour.
        anchors: (A,) indices of the unlabeled pixels that are anchors.
        count: Pixels whose neighbours are sought, the first ones; all by default.
    """
    of_anchors = torch.cat([_directions(head, labeled), _directions(head, unlabeled[anchors])]).T
    of_images = torch.cat([torch.full((len(labeled),), -1), images[anchors]]).to(of_anchors.device)
    nearest = []
    for features, of_block in zip(
        torch.split(unlabeled[:count], BLOCK_ROWS), torch.split(images[:count], BLOCK_ROWS), strict=True
    ):
        is_own = of_block.to(of_images.device)[:, None] == of_images
        cosines = (_directions(head, features) @ of_anchors).masked_fill_(is_own, -1.0)
        nearest.append(cosines.topk(min(NEIGHBORS, len(of_images)), dim=1))
    index = torch.cat([each.indices for each in nearest])
    weight = torch.cat([(each.values / TEMPERATURE).softmax(dim=1) for each in nearest])
    return Neighbors(index.cpu(), weight.cpu())


def seconds_to_propagate(head: Head, labeled: Tensor, unlabeled: Tensor) -> float:
    """Return the time of `propagate` for (L, D) and (N, D) features, from that of some pixels."""
    known, anchors = _some(len(labeled), LABELED_ANCHORS), _some(len(unlabeled), UNLABELED_ANCHORS)
    count = min(len(unlabeled), TRIAL_ROWS)
    started = time.monotonic()
    find_neighbors(head, labeled[known], unlabeled, torch.arange(len(unlabeled)), anchors, count=count)
    return (time.monotonic() - started) * len(unlabeled) / count


def _directions(head: Head, features: Tensor) -> Tensor:
    """Return what the hidden layer gives for (N, D) features, as vectors of length 1 on the head's device."""
    layers = head.layers[:2]
    hidden = torch.cat([layers(head.scaling(part)) for part in torch.split(features, 8192)])
    return torch.nn.functional.normalize(hidden, dim=1, eps=1e-6)


def _some(count: int, most: int) -> Tensor:
    """Return evenly spaced indices below `count`, at most twice `most`."""
    return torch.arange(0, count, max(1, count // most))
