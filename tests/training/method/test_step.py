"""The steps against a second implementation, written from the equations, that keeps every graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.method.losses import StepLosses
from gmtool_training.method.step import Step, StepInput, guidedmix_step, supervised_step
from naive_step import naive
from torch import Tensor, nn

from gmtool.classes import ClassSet, voc_palette
from gmtool.config import MethodConfig, ModelConfig
from gmtool.nn.checkpoint import build_network
from gmtool.nn.model import GuidedMixNet, Output, normalize

CLASSES = ClassSet(("background", "a", "b", "c"), voc_palette(4), (0, 1, 2, 3), background=0)
MODEL = ModelConfig(encoder="toy", decoder_channels=16)

VARIANTS = {
    "paper": MethodConfig(),
    "random pairs": MethodConfig(pairing="random"),
    "hard": MethodConfig(decoupling="hard"),
    "normalised": MethodConfig(normalize=True),
    "gradient through the pseudo mask": MethodConfig(detach="direct"),
    "gradient through both": MethodConfig(detach="none"),
    "no classifier": MethodConfig(classification=False),
    "no labeled pairs": MethodConfig(labeled_decoupling=False),
    "one forward": MethodConfig(batch_norm="joint"),
    "lambda below 0.1": MethodConfig(lambda_bound=0.1),
}


def network(seed: int = 0) -> GuidedMixNet:
    torch.manual_seed(seed)
    return build_network(MODEL, CLASSES).train()


def inputs(seed: int = 0, *, unlabeled: bool = True, omega: float = 2.0) -> StepInput:
    random = torch.Generator().manual_seed(100 + seed)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=random)
    masks = torch.randint(0, 4, (4, 8, 8), dtype=torch.uint8, generator=random)
    masks = masks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    masks[0, :4] = 255
    return StepInput(
        labeled=LabeledBatch(images[:4], masks),
        unlabeled=images[4:] if unlabeled else None,
        omega=omega,
        random=np.random.default_rng(seed),
    )


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_step_equals_the_naive_implementation(variant: str) -> None:
    method = VARIANTS[variant]
    ours, reference = network(), network()
    losses = guidedmix_step(ours, inputs(), backward, method=method, classes=CLASSES)
    total = naive(reference, inputs(), method, foreground=CLASSES.foreground)
    backward(total)
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-5)
    expected = gradients(reference)
    assert gradients(ours).keys() == expected.keys()
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def test_every_variant_changes_the_gradient() -> None:
    """A switch that is read and ignored would leave two variants equal."""
    norms = {}
    for name, method in VARIANTS.items():
        model = network()
        guidedmix_step(model, inputs(), backward, method=method, classes=CLASSES)
        norms[name] = round(
            sum(gradient.double().pow(2).sum().item() for gradient in gradients(model).values()), 9
        )
    assert len(set(norms.values())) == len(norms), norms


@dataclass
class Call:
    """One forward of the network."""

    images: Tensor
    with_gradient: bool


class Spy(nn.Module):
    """Records what goes through a network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls: list[Call] = []

    def forward(self, images: Tensor) -> Output:
        self.calls.append(Call(images.detach().clone(), torch.is_grad_enabled()))
        output: Output = self.inner(images)
        return output


@pytest.mark.parametrize(("batch_norm", "sizes"), [("separate", [4, 4, 4, 4]), ("joint", [8, 4, 4])])
def test_no_image_is_forwarded_twice_and_the_target_pass_keeps_nothing(batch_norm: str, sizes: list[int]) -> None:
    spy = Spy(network())
    method = replace(MethodConfig(), batch_norm=batch_norm)  # type: ignore[arg-type]
    guidedmix_step(spy, inputs(), backward, method=method, classes=CLASSES)
    assert [len(call.images) for call in spy.calls] == sizes
    assert [call.with_gradient for call in spy.calls[-2:]] == [False, True]
    assert all(call.with_gradient for call in spy.calls[:-2])
    rows = torch.cat([call.images for call in spy.calls]).flatten(1)
    assert len({row.numpy().tobytes() for row in rows}) == len(rows)


def test_mixed_images_are_the_unlabeled_ones_with_a_little_of_a_labeled_one() -> None:
    spy = Spy(network())
    given = inputs()
    assert given.unlabeled is not None
    guidedmix_step(spy, given, backward, method=MethodConfig(), classes=CLASSES)
    x_l, x_u, mixed = spy.calls[0].images, spy.calls[1].images, spy.calls[2].images
    torch.testing.assert_close(x_u, normalize(given.unlabeled))
    for row in range(4):
        # Mixing is linear: solve for lambda with each labeled image, and one of them fits
        errors = []
        for candidate in x_l:
            step = (candidate - x_u[row]).flatten()
            lam = (mixed[row] - x_u[row]).flatten() @ step / (step @ step)
            errors.append(((mixed[row] - x_u[row]).flatten() - lam * step).abs().max().item())
        assert min(errors) < 1e-5


def statistics(model: nn.Module) -> Tensor:
    return torch.cat([value for name, value in model.named_buffers() if "running" in name])


def test_mixed_images_reach_the_running_statistics_only_by_the_switch() -> None:
    alone = network()
    given = inputs()
    assert given.unlabeled is not None
    with torch.no_grad():
        alone(normalize(given.labeled.images))
        alone(normalize(given.unlabeled))
    kept, updated = network(), network()
    guidedmix_step(kept, inputs(), backward, method=MethodConfig(), classes=CLASSES)
    guidedmix_step(updated, inputs(), backward, method=MethodConfig(mixed_statistics=True), classes=CLASSES)
    torch.testing.assert_close(statistics(kept), statistics(alone))
    assert not torch.allclose(statistics(updated), statistics(alone))
    assert all(module.track_running_stats for module in kept.modules() if isinstance(module, nn.BatchNorm2d))


def test_warm_up_is_the_supervised_step() -> None:
    ours, supervised = network(), network()
    first = guidedmix_step(ours, inputs(unlabeled=False), backward, method=MethodConfig(), classes=CLASSES)
    second = supervised_step(supervised, inputs(), backward, method=MethodConfig(), classes=CLASSES)
    assert first.total.item() == second.total.item()
    assert first.unlabeled.item() == first.labeled_decoupling.item() == 0
    for name, gradient in gradients(ours).items():
        assert torch.equal(gradient, gradients(supervised)[name])


def test_a_single_labeled_image_has_no_labeled_pair() -> None:
    given = inputs()
    one = replace(given, labeled=LabeledBatch(given.labeled.images[:1], given.labeled.masks[:1]))
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # one pooled value has no batch statistics
    losses = guidedmix_step(model, one, backward, method=MethodConfig(), classes=CLASSES)
    assert losses.labeled_decoupling.item() == 0
    assert losses.unlabeled.item() > 0


def trained_losses(step: Step) -> Iterator[StepLosses]:
    """Five seeded optimiser steps."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for index in range(5):
        optimizer.zero_grad()
        yield step(model, inputs(index), backward)
        optimizer.step()


GOLDEN = {
    "supervised": (supervised_step, [2.2105744, 2.1868260, 2.1748180, 2.1914816, 2.1277730]),
    "guidedmix": (guidedmix_step, [2.2341387, 2.2308197, 2.2259848, 2.2104661, 2.1628158]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_five_seeded_steps_give_the_recorded_losses(name: str) -> None:
    step, expected = GOLDEN[name]
    bound: Step = partial(step, method=MethodConfig(), classes=CLASSES)
    totals = [losses.total.item() for losses in trained_losses(bound)]
    assert totals == pytest.approx(expected, rel=2e-4), totals
