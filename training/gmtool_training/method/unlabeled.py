"""Unlabeled part of a step: pseudo masks, weak or strong view, and the loss between the two."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmtool.config import MethodConfig
from gmtool.nn.model import Output, normalize
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.method.batchnorm import frozen_statistics
from gmtool_training.method.losses import lowest_entropy, pseudo_cross_entropy, squared_difference
from gmtool_training.method.mixing import decouple, mix_pairs, nearest_partners, random_partners
from gmtool_training.method.strong_view import change_colors, draw_boxes, paste


@dataclass(frozen=True)
class Known:
    """What the labeled images' own forward gave, as constants."""

    images: Tensor
    """(B, 3, H, W), normalised."""
    probabilities: Tensor
    """(B, C, H, W)."""
    embedding: Tensor
    """(B, D), pooled encoder features."""


@dataclass(frozen=True)
class PseudoMask:
    """What the teacher says of unlabeled images, and what it was asked with."""

    mask: Tensor
    """(B, C, H, W)."""
    partners: Tensor | None = None
    """(B, K) indices of each image's labeled partners, nearest first; None where none is mixed in."""
    mixed: Tensor | None = None
    """(B, 3, H, W) mixed images, normalised; None where none is mixed in."""


@dataclass(frozen=True)
class Target:
    """What the network is to predict for a view of the unlabeled images."""

    images: Tensor
    """(B, 3, H, W): the view, normalised."""
    pseudo: Tensor
    """(B, C, H, W) pseudo mask of the view."""
    counted: Tensor | None
    """(B, H, W) bool: pixels that may count; None: all."""
    source: PseudoMask
    """What the pseudo mask comes from."""


def weak_target(
    teacher: nn.Module,
    own: Output | None,
    x_u: Tensor,
    inside: Tensor | None,
    known: Known,
    lam: float,
    random: np.random.Generator,
    method: MethodConfig,
) -> Target:
    """Return what is to be predicted for the unlabeled images as they are (Eq. 10).

    Args:
        teacher: Predicts the pseudo masks; the network in training itself in the paper.
        own: What the teacher gave for `x_u`, if that is known.
        x_u: Unlabeled images, (B, 3, H, W), normalised.
        inside: (B, H, W) bool, False outside of the image; None: all pixels count.
        known: Of the labeled images, by `teacher`.
        lam: The mixing coefficient.
        random: Source of the partners where they are random.
        method: Every switch.
    """
    # As a target, the mixed pass needs no gradient and saves no activations
    with torch.no_grad() if method.detach == "pseudo" else nullcontext():
        source = _pseudo_mask(teacher, own, x_u, known, lam, random, method)
    return Target(x_u, source.mask, None if method.margin else inside, source)


@torch.no_grad()
def strong_target(
    teacher: nn.Module,
    images: Tensor,
    inside: Tensor | None,
    labeled: LabeledBatch,
    known: Known,
    lam: float,
    random: np.random.Generator,
    method: MethodConfig,
    *,
    ignore_index: int,
) -> Target:
    """Return the same for a strong view of unlabeled images, (B, 3, H, W) uint8: weak teaches strong (FixMatch).

    Boxes may show another unlabeled image with its pseudo mask, or one of `labeled` with its true mask.
    """
    source = _pseudo_mask(teacher, None, normalize(images), known, lam, random, method)
    size, device = (images.shape[-2], images.shape[-1]), images.device
    boxes = draw_boxes(len(images), size, share=method.cutmix, random=random).to(device)
    strong, pseudo = paste(change_colors(images, random, share=method.colors), boxes), paste(source.mask, boxes)
    counted = None if inside is None or method.margin else paste(inside, boxes)
    if method.paste:
        boxes = draw_boxes(len(images), size, share=method.paste, random=random)
        counted = torch.ones_like(boxes, device=device) if counted is None else counted
        strong, pseudo, counted = _paste_labeled(
            strong, pseudo, counted, boxes, labeled, random, colors=method.colors, ignore_index=ignore_index
        )
    return Target(normalize(strong), pseudo, counted, source)


def unlabeled_loss(logits: Tensor, target: Target, method: MethodConfig, class_weights: Tensor | None) -> Tensor:
    """Return L_usup of logits (B, C, H, W) for a view; `class_weights` (C,) are those of `method.balance`."""
    pseudo, weights = weighted_mask(target, method, class_weights)
    if method.unlabeled_loss != "squared":
        return pseudo_cross_entropy(logits, pseudo, weights, soft=method.unlabeled_loss == "soft-cross-entropy")
    direct = torch.softmax(logits, dim=1)
    return squared_difference(direct.detach() if method.detach == "direct" else direct, pseudo, weights)


def weighted_mask(
    target: Target, method: MethodConfig, class_weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the pseudo mask as the loss takes it, and how much each pixel counts, (B, H, W); None: all alike."""
    pseudo = target.pseudo
    if method.renormalize:
        pseudo = pseudo.clamp(min=0)
        pseudo = pseudo / pseudo.sum(dim=1, keepdim=True).clamp(min=1e-6)
    weights = _weights(pseudo.detach(), target.counted, method)
    if class_weights is not None:
        of_class = class_weights[pseudo.detach().max(dim=1).indices]
        weights = of_class if weights is None else weights * of_class
    return pseudo, weights


def _paste_labeled(
    images: Tensor,
    pseudo: Tensor,
    counted: Tensor,
    boxes: Tensor,
    labeled: LabeledBatch,
    random: np.random.Generator,
    *,
    colors: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, pseudo masks and what counts of them, with a labeled image and its mask in each box."""
    rows = boxes.flatten(1).any(dim=1).nonzero()[:, 0]  # the others need no work
    boxes, rows = boxes[rows].to(images.device), rows.to(images.device)
    partners = rows % len(labeled.images)
    truth = labeled.masks[partners].long()
    known_pixels = truth != ignore_index
    one_hot = F.one_hot(truth * known_pixels, pseudo.shape[1]).permute(0, 3, 1, 2).to(pseudo.dtype)
    if len(rows):
        shown = change_colors(labeled.images[partners], random, share=colors)
        images = images.index_copy(0, rows, torch.where(boxes[:, None], shown, images[rows]))
    pseudo = pseudo.index_copy(0, rows, torch.where(boxes[:, None], one_hot, pseudo[rows]))
    return images, pseudo, counted.index_copy(0, rows, torch.where(boxes, known_pixels, counted[rows]))


def statistics_of_changed_images(network: nn.Module, method: MethodConfig) -> AbstractContextManager[None]:
    """Return the context in which mixed or strongly changed images go through a network."""
    return nullcontext() if method.mixed_statistics else frozen_statistics(network)


def _pseudo_mask(
    teacher: nn.Module,
    own: Output | None,
    x_u: Tensor,
    known: Known,
    lam: float,
    random: np.random.Generator,
    method: MethodConfig,
) -> PseudoMask:
    """Return what unlabeled images should be; `own` is the teacher's output for them, if known."""
    needs_own = method.pseudo != "decoupled" or method.pairing == "similar"
    if needs_own and own is None:
        with frozen_statistics(teacher):
            own = teacher(x_u)
    if method.pseudo == "direct":
        assert own is not None
        return PseudoMask(torch.softmax(own.logits, dim=1))
    if method.pairing == "similar":
        assert own is not None
        partners = nearest_partners(own.embedding.detach(), known.embedding, count=method.partners)
    else:
        partners = random_partners(len(x_u), len(known.images), random, count=method.partners).to(x_u.device)
    # Several partners share lambda: their mean is the labeled part, and its prediction what is subtracted
    minor, subtracted = known.images[partners].mean(dim=1), known.probabilities[partners].mean(dim=1)
    images = mix_pairs(minor, x_u, lam)
    with statistics_of_changed_images(teacher, method):
        mixed: Output = teacher(images)
    mask = decouple(torch.softmax(mixed.logits, dim=1), subtracted, lam, method=method)
    if method.pseudo == "mean":
        assert own is not None
        mask = (mask + torch.softmax(own.logits.detach(), dim=1)) / 2
    return PseudoMask(mask, partners, images)


def _weights(pseudo: Tensor, counted: Tensor | None, method: MethodConfig) -> Tensor | None:
    """Return how much each pixel counts, (B, H, W) in [0, 1]; None where all count alike."""
    if counted is None and not (method.confidence or method.confidence_weighting or method.entropy_share < 1):
        return None
    largest = pseudo.amax(dim=1)
    weights = (largest >= method.confidence).to(pseudo.dtype)
    if method.confidence_weighting:
        weights = weights * largest.clamp(0, 1)
    if counted is not None:
        weights = weights * counted
    return (
        weights * lowest_entropy(pseudo, counted, share=method.entropy_share)
        if method.entropy_share < 1
        else weights
    )
