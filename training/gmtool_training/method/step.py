"""One training step: supervised, and GuidedMix-Net (paper Sec. 3; docs/method.md, section 2).

A step calls `backward` for each part of its loss as soon as that is computed, so that the activations of one part
are freed before the next part is computed. The training loop owns the optimiser.
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
from gmtool_training.method.draws import Number, StepDraws, draw_step
from gmtool_training.method.losses import StepLosses, cross_entropy, image_classification, squared_difference
from gmtool_training.method.mixing import decouple, mix_pairs, nearest_others
from gmtool_training.method.unlabeled import (
    LabeledPredictions,
    Teacher,
    predict_view,
    statistics_of_changed_images,
    unlabeled_loss,
)

Backward = Callable[[Tensor], None]


@dataclass(frozen=True)
class StepInput:
    """Input of one training step: batches, loss weight and random generator."""

    labeled: LabeledBatch
    unlabeled: Tensor | None
    """(B, 3, H, W) uint8 RGB; None in warm-up and in supervised training."""
    omega: Number
    """Weight of the unlabeled loss."""
    random: np.random.Generator
    """Source of all random numbers of this step."""
    inside: Tensor | None = None
    """(B, H, W) bool: False where an unlabeled crop lies outside of its image; None: all inside."""
    scored_pixels: Tensor | None = None
    """Divisor of the summed cross-entropy; None: number of pixels of this batch that are not ignored."""
    drawn: StepDraws | None = None
    """What was drawn from `random`; None: nothing yet."""

    def draws(self, method: MethodConfig) -> StepDraws:
        """Return the random numbers of the step, drawn if they are not."""
        if self.drawn is not None:
            return self.drawn
        assert self.unlabeled is not None
        return draw_step(self.random, method, labeled=len(self.labeled.images), unlabeled=self.unlabeled)


class Step(Protocol):
    """Function that computes the losses of one step and propagates them with `backward`."""

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
    """Compute L_ce + L_cla of the labeled images and propagate it; unlabeled images are ignored.

    Args:
        network: The network in training.
        inputs: Batch of the step.
        backward: Propagates a loss.
        method: Switches of the losses.
        classes: Ignore index and foreground classes.
        class_weights: (C,), those of `method.balance`, on the network's device; None: all classes alike.
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
    """Compute L_ce + L_cla + L_dec + omega L_usup and propagate it, with every switch of `MethodConfig`.

    Without unlabeled images (warm-up) it is the supervised step. Labeled images go through the network once; both
    decouplings use their probabilities as constants.

    Args:
        network: The network in training.
        inputs: Batches of the step.
        backward: Propagates a loss.
        method: Switches of the method.
        classes: Ignore index and foreground classes.
        average: Running mean of the weights; needed by `method.teacher=average`.
        class_weights: (C,), those of `method.balance`, on the network's device; None: all classes alike.
    """
    if inputs.unlabeled is None:
        return supervised_step(
            network, inputs, backward, method=method, classes=classes, class_weights=class_weights
        )
    x_l = normalize(inputs.labeled.images)
    drawn = inputs.draws(method)

    # Labeled images: supervised losses, and the predictions that both decouplings use
    joint = network(torch.cat([x_l, normalize(inputs.unlabeled)])) if method.batch_norm == "joint" else None
    out_l = network(x_l) if joint is None else Output(*(part[: len(x_l)] for part in joint))
    ce, cla = _labeled_losses(out_l, inputs, method, classes, class_weights)
    labeled = labeled_predictions(x_l, out_l)
    if joint is None:
        backward(ce + cla)
    del out_l

    # Unlabeled images: the network's prediction against the teacher's pseudo mask
    target, out_u = predict_view(
        network,
        teacher_of(network, average, labeled, drawn, method),
        inputs.unlabeled,
        inside=inputs.inside,
        joint=None if joint is None else Output(*(part[len(x_l) :] for part in joint)),
    )
    usup = unlabeled_loss(out_u.logits, target, method, class_weights)
    del out_u, target
    backward(inputs.omega * usup if joint is None else ce + cla + inputs.omega * usup)
    del joint

    # Labeled pairs: the decoupled mask of a mixed pair against the labeled image's own prediction
    dec = torch.zeros_like(ce.detach())
    if method.labeled_decoupling and len(x_l) >= 2:
        dec = _labeled_decoupling_loss(network, labeled, drawn, method)
        backward(dec)
    return StepLosses(ce.detach(), cla.detach(), dec.detach(), usup.detach(), inputs.omega)


def labeled_predictions(images: Tensor, output: Output) -> LabeledPredictions:
    """Return a network's output for labeled images (B, 3, H, W) as constants."""
    return LabeledPredictions(images, torch.softmax(output.logits.detach(), dim=1), output.embedding.detach())


def teacher_of(
    network: nn.Module,
    average: nn.Module | None,
    labeled: LabeledPredictions,
    drawn: StepDraws,
    method: MethodConfig,
) -> Teacher:
    """Return the teacher of a step.

    Args:
        network: The network in training, the teacher by default.
        average: Running mean of its weights, the teacher of `method.teacher=average`.
        labeled: Predictions of `network` for the labeled images.
        drawn: Random numbers of the step.
        method: Switches of the method.
    """
    if method.teacher == "student" or average is None:
        return Teacher(network, labeled, drawn, method)
    if method.pseudo != "direct":  # mixing subtracts the teacher's own prediction
        with torch.no_grad(), frozen_statistics(average):
            labeled = labeled_predictions(labeled.images, average(labeled.images))
    return Teacher(average, labeled, drawn, method)


def _labeled_losses(
    output: Output, inputs: StepInput, method: MethodConfig, classes: ClassSet, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    masks = inputs.labeled.masks
    ce = cross_entropy(
        output.logits,
        masks,
        ignore_index=classes.ignore_index,
        scored_pixels=inputs.scored_pixels,
        class_weights=class_weights,
    )
    if not method.classification:
        return ce, torch.zeros_like(ce)
    return ce, image_classification(output.image_logits, masks, foreground=classes.foreground)


def _labeled_decoupling_loss(
    network: nn.Module, labeled: LabeledPredictions, drawn: StepDraws, method: MethodConfig
) -> Tensor:
    """L_dec (Eq. 12): gradient through the mixed prediction only."""
    if method.pairing == "similar":
        other = nearest_others(labeled.embedding)
    else:
        assert drawn.others is not None
        other = drawn.others
    with statistics_of_changed_images(network, method):
        mixed: Output = network(mix_pairs(labeled.images, labeled.images[other], drawn.lam))
    m_dec = decouple(torch.softmax(mixed.logits, dim=1), labeled.probabilities, drawn.lam, method=method)
    return squared_difference(m_dec, labeled.probabilities[other])
