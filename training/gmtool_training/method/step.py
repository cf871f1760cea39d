"""One training step: supervised, and GuidedMix-Net in full (paper Sec. 3; the order is METHOD 2's).

A step computes its losses and propagates each part by `backward` as soon as it stands, so that the
activations of one part are gone before those of the next exist. The optimiser belongs to the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gmtool.classes import ClassSet
from gmtool.config import MethodConfig
from gmtool.nn.model import Output, normalize
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.method.batchnorm import frozen_statistics
from gmtool_training.method.losses import StepLosses, cross_entropy, image_classification, squared_difference
from gmtool_training.method.mixing import (
    decouple,
    draw_lambda,
    mix_pairs,
    nearest_others,
    random_others,
)
from gmtool_training.method.unlabeled import (
    Known,
    statistics_of_changed_images,
    strong_target,
    unlabeled_loss,
    weak_target,
)

Backward = Callable[[Tensor], None]


@dataclass(frozen=True)
class StepInput:
    """What one step works on."""

    labeled: LabeledBatch
    unlabeled: Tensor | None
    """(B, 3, H, W) uint8 RGB; None in warm-up and in supervised training."""
    omega: float
    """Weight of the unlabeled loss."""
    random: np.random.Generator
    """Source of every draw of this step."""
    inside: Tensor | None = None
    """(B, H, W) bool: where the unlabeled crops show their images; None: everywhere."""
    scored_pixels: Tensor | None = None
    """What the sum of the cross-entropy is divided by; None: the pixels of this batch that are not ignored."""


class Step(Protocol):
    """What `fit` calls: compute the losses of one step, and propagate them with `backward`."""

    def __call__(self, network: nn.Module, inputs: StepInput, backward: Backward) -> StepLosses: ...


def supervised_step(
    network: nn.Module,
    inputs: StepInput,
    backward: Backward,
    *,
    method: MethodConfig,
    classes: ClassSet,
    class_weights: Tensor | None = None,
) -> StepLosses:
    """L_ce + L_cla on the labeled images alone. Unlabeled images are not looked at.

    `class_weights` (C,) are those of `method.balance`, on the network's device.
    """
    output: Output = network(normalize(inputs.labeled.images))
    ce, cla = _labeled_losses(output, inputs, method, classes, class_weights)
    backward(ce + cla)
    zero = torch.zeros_like(ce.detach())
    return StepLosses(ce.detach(), cla.detach(), zero, zero, inputs.omega)


def guidedmix_step(
    network: nn.Module,
    inputs: StepInput,
    backward: Backward,
    *,
    method: MethodConfig,
    classes: ClassSet,
    average: nn.Module | None = None,
    class_weights: Tensor | None = None,
) -> StepLosses:
    """L_ce + L_cla + L_dec + omega L_usup, with every switch of `MethodConfig`.

    Without unlabeled images (warm-up) it is the supervised step. Each labeled image goes through the
    network once by itself; its probabilities serve both decouplings and are constants there. `average` is
    the running mean of the weights, where it is the teacher; `class_weights` (C,) are those of `method.balance`.
    """
    if inputs.unlabeled is None:
        return supervised_step(
            network, inputs, backward, method=method, classes=classes, class_weights=class_weights
        )
    teacher = network if method.teacher == "student" or average is None else average
    x_l, x_u = normalize(inputs.labeled.images), normalize(inputs.unlabeled)
    lam = draw_lambda(inputs.random, bound=method.lambda_bound)

    # Labeled images: supervised losses, and what both decouplings need
    joint = network(torch.cat([x_l, x_u])) if method.batch_norm == "joint" else None
    out_l = network(x_l) if joint is None else Output(*(part[: len(x_l)] for part in joint))
    ce, cla = _labeled_losses(out_l, inputs, method, classes, class_weights)
    known = known_of(x_l, out_l)
    if joint is None:
        backward(ce + cla)
    del out_l

    # Unlabeled images: a prediction with gradient against the teacher's mask
    taught = known_by_teacher(teacher, network, known, method)
    if method.view == "strong":
        target = strong_target(
            teacher,
            inputs.unlabeled,
            inputs.inside,
            inputs.labeled,
            taught,
            lam,
            inputs.random,
            method,
            ignore_index=classes.ignore_index,
        )
        with statistics_of_changed_images(network, method):
            out_u: Output = network(target.images)
    else:
        out_u = network(x_u) if joint is None else Output(*(part[len(x_l) :] for part in joint))
        own = out_u if teacher is network else None
        target = weak_target(teacher, own, x_u, inputs.inside, taught, lam, inputs.random, method)
    usup = unlabeled_loss(out_u.logits, target, method, class_weights)
    del out_u, target
    backward(inputs.omega * usup if joint is None else ce + cla + inputs.omega * usup)
    del joint

    # Labeled pairs: the decoupled mask of a mixed pair against the known prediction
    dec = torch.zeros_like(ce.detach())
    if method.labeled_decoupling and len(x_l) >= 2:
        dec = _labeled_decoupling_loss(network, known, lam, inputs.random, method)
        backward(dec)
    return StepLosses(ce.detach(), cla.detach(), dec.detach(), usup.detach(), inputs.omega)


def known_of(images: Tensor, output: Output) -> Known:
    """Return what a forward of labeled images gave, as constants."""
    return Known(images, torch.softmax(output.logits.detach(), dim=1), output.embedding.detach())


def known_by_teacher(teacher: nn.Module, network: nn.Module, known: Known, method: MethodConfig) -> Known:
    """Return what the teacher says of the labeled images, where it is another network and mixes them in."""
    if teacher is network or method.pseudo == "direct":
        return known
    with torch.no_grad(), frozen_statistics(teacher):
        return known_of(known.images, teacher(known.images))


def _labeled_losses(
    output: Output, inputs: StepInput, method: MethodConfig, classes: ClassSet, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    masks = inputs.labeled.masks
    ce = cross_entropy(
        output.logits,
        masks,
        ignore_index=classes.ignore_index,
        scored_pixels=inputs.scored_pixels,
        hardest=method.hardest,
        class_weights=class_weights,
    )
    if not method.classification:
        return ce, torch.zeros_like(ce)
    return ce, image_classification(output.image_logits, masks, foreground=classes.foreground)


def _labeled_decoupling_loss(
    network: nn.Module, known: Known, lam: float, random: np.random.Generator, method: MethodConfig
) -> Tensor:
    """L_dec (Eq. 12): gradient through the mixed prediction only."""
    if method.pairing == "similar":
        other = nearest_others(known.embedding)
    else:
        other = random_others(len(known.images), random).to(known.images.device)
    with statistics_of_changed_images(network, method):
        mixed: Output = network(mix_pairs(known.images, known.images[other], lam))
    m_dec = decouple(torch.softmax(mixed.logits, dim=1), known.probabilities, lam, method=method)
    return squared_difference(m_dec, known.probabilities[other])
