"""Deep check: a network's scores and the losses of its steps in float32, against float64 on the processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.engine.average import averaged_copy
from gmtool_training.method.step import StepInput, guidedmix_step, supervised_step
from torch import Tensor, nn

from gmtool.doctor.deep.result import Checked, Setting, require
from gmtool.doctor.deep.steps import CLASSES, RECIPE_NAMES, random_batches, step_config
from gmtool.nn.checkpoint import build_network
from gmtool.nn.model import GuidedMixNet, Output, normalize

SCORES, LOSSES = 1e-3, 1e-2
"""Largest relative differences. Where two classes of a pseudo mask are nearly equal, float32 may take the other,
so that losses and gradients of a step differ by more than scores do."""


class _Float64(nn.Module):
    """A network that computes in float64 and gives float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Output:
        return Output(*(part.float() for part in self.network(images.double())))


def check(setting: Setting) -> Checked:
    """Compare scores of images, and losses and gradients of one step of every recipe."""
    encoder = "resnet50" if setting.place == "cuda" else "toy"
    figures = {"scores": _scores(_network(encoder), _network(encoder), torch.device(setting.place))}
    require(figures["scores"] < SCORES, f"scores differ by {figures['scores']:.2g} of the largest")
    for recipe in RECIPE_NAMES:
        figures[recipe] = _step(recipe, encoder, torch.device(setting.place))
        require(figures[recipe] < LOSSES, f"{recipe}: losses or gradient differ by {figures[recipe]:.2g}")
    worst = max(figures[recipe] for recipe in RECIPE_NAMES)
    left_out = "no card: the processor was compared with itself" if setting.place == "cpu" else None
    text = f"{encoder} in float32 against float64: scores within {figures['scores']:.0e}, steps within {worst:.0e}"
    return Checked(text, left_out, figures)


def _network(encoder: str) -> GuidedMixNet:
    torch.manual_seed(0)
    return build_network(step_config("paper", {"model.encoder": encoder}).model, CLASSES)


@contextmanager
def _in_float32(device: torch.device) -> Iterator[None]:
    """Compute without TF32 within the block."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def _scores(ours: GuidedMixNet, reference: GuidedMixNet, device: torch.device) -> float:
    """Return the largest difference of the scores of two images, over the largest score."""
    images = normalize(torch.randint(0, 256, (2, 3, 65, 81), generator=torch.Generator().manual_seed(1)))
    with torch.no_grad(), _in_float32(device):
        found = ours.eval().to(device)(images.to(device)).logits.cpu()
        expected = _Float64(reference.eval())(images).logits
    return float((found - expected).abs().max() / expected.abs().max())


def _step(recipe: str, encoder: str, device: torch.device) -> float:
    """Return the largest relative difference of the total loss and of the gradient's norm of one step."""
    ours, reference = _network(encoder).to(device).train(), _Float64(_network(encoder)).train()
    with _in_float32(device):
        found = _loss_and_gradient(recipe, ours, ours, device)
    expected = _loss_and_gradient(recipe, reference, reference.network, torch.device("cpu"))
    return max(abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True))


def _loss_and_gradient(
    recipe: str, network: nn.Module, inner: nn.Module, device: torch.device
) -> tuple[float, float]:
    config = step_config(recipe, {})
    (images, masks), (others, inside) = random_batches(config)
    inputs = StepInput(
        labeled=LabeledBatch(images.to(device), masks.to(device)),
        unlabeled=others.to(device),
        omega=1.0,
        random=np.random.default_rng(0),
        inside=inside.to(device),
    )
    average = averaged_copy(network) if config.method.teacher == "average" else None
    weights = torch.linspace(0.5, 1.5, len(CLASSES), device=device) if config.method.balance else None
    if config.method.name == "supervised":
        losses = supervised_step(network, inputs, _backward, method=config.method, classes=CLASSES)
    else:
        losses = guidedmix_step(
            network,
            inputs,
            _backward,
            method=config.method,
            classes=CLASSES,
            average=average,
            class_weights=weights,
        )
    gradients = [each.grad for each in inner.parameters() if each.grad is not None]
    return losses.total.item(), torch.nn.utils.get_total_norm(gradients).item()


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
