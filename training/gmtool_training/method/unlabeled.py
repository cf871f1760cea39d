"""Unlabeled part of a step: pseudo masks, weak or strong view, and the loss between the two."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gmtool.config import MethodConfig
from gmtool.nn.model import Output, normalize
from gmtool_training.method.batchnorm import frozen_statistics
from gmtool_training.method.draws import StepDraws
from gmtool_training.method.losses import pseudo_cross_entropy, squared_difference
from gmtool_training.method.mixing import decouple, mix_pairs, nearest_partners
from gmtool_training.method.strong_view import paste


@dataclass(frozen=True)
class LabeledPredictions:
    """Predictions for the labeled images, as constants."""

    images: Tensor
    """(B, 3, H, W), normalised."""
    probabilities: Tensor
    """(B, C, H, W)."""
    embedding: Tensor
    """(B, D), pooled encoder features."""


@dataclass(frozen=True)
class Teacher:
    """Network that predicts the pseudo masks of one step, with all that its predictions depend on."""

    network: nn.Module
    """The network in training (paper), or the running mean of its weights."""
    labeled: LabeledPredictions
    """Its predictions for the labeled images."""
    drawn: StepDraws
    """Random numbers of the step."""
    method: MethodConfig


@dataclass(frozen=True)
class PseudoMask:
    """Pseudo masks of unlabeled images, with the mixed images that they come from."""

    mask: Tensor
    """(B, C, H, W)."""
    partners: Tensor | None = None
    """(B,) index of the labeled partner of each image; None without mixing."""
    mixed: Tensor | None = None
    """(B, 3, H, W) mixed images, normalised; None without mixing."""


@dataclass(frozen=True)
class Target:
    """View of the unlabeled images, and its pseudo mask."""

    images: Tensor
    """(B, 3, H, W): the view, normalised."""
    pseudo: Tensor
    """(B, C, H, W) pseudo mask of the view."""
    counted: Tensor | None
    """(B, H, W) bool: pixels that may count; None: all."""
    source: PseudoMask
    """Pseudo mask of the images before their view was made."""


def predict_view(
    network: nn.Module,
    teacher: Teacher,
    images: Tensor,
    *,
    inside: Tensor | None,
    joint: Output | None,
) -> tuple[Target, Output]:
    """Return a view of unlabeled images with its pseudo mask, and the network's output for the view.

    Args:
        network: The network in training.
        teacher: Predicts the pseudo masks.
        images: Unlabeled images, (B, 3, H, W) uint8 RGB.
        inside: (B, H, W) bool, False outside of the image; None: all pixels count.
        joint: Output of `network` for the weak view, if a joint forward gave it.
    """
    if teacher.method.view == "strong":
        target = strong_target(teacher, images, inside=inside)
        with statistics_of_changed_images(network, teacher.method):
            return target, network(target.images)
    x_u = normalize(images)
    output: Output = network(x_u) if joint is None else joint
    own = output if teacher.network is network else None
    return weak_target(teacher, x_u, own=own, inside=inside), output


def weak_target(teacher: Teacher, x_u: Tensor, *, own: Output | None, inside: Tensor | None) -> Target:
    """Return the unlabeled images unchanged, and their pseudo mask (Eq. 10).

    Args:
        teacher: Predicts the pseudo masks.
        x_u: Unlabeled images, (B, 3, H, W), normalised.
        own: The teacher's output for `x_u`, if known.
        inside: (B, H, W) bool, False outside of the image; None: all pixels count.
    """
    # As a target, the mixed pass needs no gradient and saves no activations
    with torch.no_grad() if teacher.method.detach == "pseudo" else nullcontext():
        source = _pseudo_mask(teacher, x_u, own=own)
    return Target(x_u, source.mask, None if teacher.method.margin else inside, source)


@torch.no_grad()
def strong_target(teacher: Teacher, images: Tensor, *, inside: Tensor | None) -> Target:
    """Return the strong view of unlabeled images, and its pseudo mask from the weak view (FixMatch).

    Boxes show another unlabeled image with its pseudo mask.

    Args:
        teacher: Predicts the pseudo masks.
        images: Unlabeled images, (B, 3, H, W) uint8 RGB.
        inside: (B, H, W) bool, False outside of the image; None: all pixels count.
    """
    method, boxes, colored = teacher.method, teacher.drawn.boxes, teacher.drawn.colored
    assert boxes is not None and colored is not None
    # Weak view: the pseudo mask
    source = _pseudo_mask(teacher, normalize(images), own=None)
    # Strong view: boxes of other unlabeled images, other colours
    strong = paste(colored, boxes)
    counted = None if inside is None or method.margin else paste(inside, boxes)
    return Target(normalize(strong), paste(source.mask, boxes), counted, source)


def unlabeled_loss(logits: Tensor, target: Target, method: MethodConfig, class_weights: Tensor | None) -> Tensor:
    """Return L_usup (Eq. 10), a scalar.

    Args:
        logits: Prediction for the view, (B, C, H, W).
        target: The view's pseudo mask.
        method: `unlabeled_loss`, `detach` and the weights of the pixels apply.
        class_weights: (C,), those of `method.balance`; None: all classes alike.
    """
    weights = pixel_weights(target, method, class_weights)
    if method.unlabeled_loss == "cross-entropy":
        return pseudo_cross_entropy(logits, target.pseudo, weights)
    direct = torch.softmax(logits, dim=1)
    return squared_difference(direct.detach() if method.detach == "direct" else direct, target.pseudo, weights)


def pixel_weights(target: Target, method: MethodConfig, class_weights: Tensor | None) -> Tensor | None:
    """Return the weight of each pixel in the unlabeled loss, (B, H, W); None: all 1."""
    weights = target.counted
    if method.confidence:
        sure = target.pseudo.detach().amax(dim=1) >= method.confidence
        weights = sure if weights is None else sure & weights
    weights = None if weights is None else weights.to(target.pseudo.dtype)
    if class_weights is not None:
        of_class = class_weights[target.pseudo.detach().max(dim=1).indices]
        weights = of_class if weights is None else weights * of_class
    return weights


def statistics_of_changed_images(network: nn.Module, method: MethodConfig) -> AbstractContextManager[None]:
    """Return the context of a forward of mixed or strong images: by default it keeps the running statistics."""
    return nullcontext() if method.mixed_statistics else frozen_statistics(network)


def _pseudo_mask(teacher: Teacher, x_u: Tensor, *, own: Output | None) -> PseudoMask:
    """Return the pseudo mask of images (B, 3, H, W); `own` is the teacher's output for them, if known."""
    method, labeled = teacher.method, teacher.labeled
    # The teacher's direct prediction
    needs_own = method.pseudo == "direct" or method.pairing == "similar"
    if needs_own and own is None:
        with frozen_statistics(teacher.network):
            own = teacher.network(x_u)
    if method.pseudo == "direct":
        assert own is not None
        return PseudoMask(torch.softmax(own.logits, dim=1))
    # Pairing (Eq. 3)
    if method.pairing == "similar":
        assert own is not None
        partners = nearest_partners(own.embedding.detach(), labeled.embedding)
    else:
        assert teacher.drawn.partners is not None
        partners = teacher.drawn.partners
    # Mixing (Eq. 2) and decoupling (Eq. 7, 8)
    lam = teacher.drawn.lam
    images = mix_pairs(labeled.images[partners], x_u, lam)
    with statistics_of_changed_images(teacher.network, method):
        mixed: Output = teacher.network(images)
    subtracted = labeled.probabilities[partners]
    mask = decouple(torch.softmax(mixed.logits, dim=1), subtracted, lam, method=method)
    return PseudoMask(mask, partners, images)
