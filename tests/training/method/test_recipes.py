"""FixMatch, and the switches beyond the paper."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Cli
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.engine.average import averaged_copy
from gmtool_training.loop.run import train
from gmtool_training.method.step import StepInput, guidedmix_step, supervised_step
from gmtool_training.method.strong_view import change_colors, draw_boxes, paste
from gmtool_training.recipes.recipes import RECIPES

from gmtool.classes import load_classes
from gmtool.config import MethodConfig, ModelConfig
from gmtool.errors import ConfigError
from gmtool.nn.checkpoint import build_network
from gmtool.nn.model import GuidedMixNet, normalize
from gmtool.settings import Settings, build_config

CLASSES = load_classes("voc")


def method_of(**changes: object) -> MethodConfig:
    return replace(MethodConfig(), **changes)  # type: ignore[arg-type]


def recipe_method(name: str) -> MethodConfig:
    values = {key.removeprefix("method."): value for key, value in RECIPES[name].items() if "method." in key}
    return method_of(**values)


@pytest.fixture
def network() -> GuidedMixNet:
    torch.manual_seed(0)
    return build_network(ModelConfig(encoder="toy", decoder_channels=16), CLASSES)


@pytest.fixture
def teacher(network: GuidedMixNet, inputs: StepInput) -> GuidedMixNet:
    torch.manual_seed(1)
    other = averaged_copy(build_network(ModelConfig(encoder="toy", decoder_channels=16), CLASSES))
    assert inputs.unlabeled is not None
    while other(normalize(inputs.unlabeled)).logits.softmax(1).amax(1).median() < 0.5:
        other.classifier.weight.mul_(2)  # sure of half of the pixels
    return other


@pytest.fixture
def inputs() -> StepInput:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 24, 24), dtype=torch.uint8, generator=random)
    masks = torch.randint(0, 21, (4, 24, 24), dtype=torch.uint8, generator=random)
    inside = torch.ones(4, 24, 24, dtype=torch.bool)
    inside[0, :, 12:] = False
    return StepInput(LabeledBatch(images[:4], masks), images[4:], 2.0, np.random.default_rng(0), inside)


def run_step(
    network: GuidedMixNet, inputs: StepInput, method: MethodConfig, teacher: GuidedMixNet | None = None
) -> dict[str, torch.Tensor]:
    """One step from the same draws; returns its gradient."""
    network.zero_grad()
    step = supervised_step if method.name == "supervised" else guidedmix_step
    more: dict[str, Any] = {} if method.name == "supervised" else {"average": teacher}
    fresh = replace(inputs, random=np.random.default_rng(0))
    step(network, fresh, propagate, method=method, classes=CLASSES, **more)
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def propagate(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def test_fixmatch_equals_its_definition(network: GuidedMixNet, teacher: GuidedMixNet, inputs: StepInput) -> None:
    """A second implementation: weak prediction of the teacher, threshold, strong view, box, cross-entropy."""
    method = replace(recipe_method("fixmatch"), confidence=0.5)
    network.train()
    ours = run_step(network, inputs, method, teacher)
    network.zero_grad()
    assert inputs.unlabeled is not None
    random = np.random.default_rng(0)
    while min(drawn := float(random.beta(1, 1)), 1 - drawn) >= 0.5:  # the step draws lambda for every recipe
        pass
    logits = network(normalize(inputs.labeled.images)).logits
    propagate(F.cross_entropy(logits, inputs.labeled.masks.long(), ignore_index=255))
    with torch.no_grad():
        probability, label = teacher(normalize(inputs.unlabeled)).logits.softmax(1).max(1)
    boxes = torch.from_numpy(draw_boxes(4, (24, 24), share=0.5, random=random))
    strong = change_colors(inputs.unlabeled, random)
    images, labels, counted = strong.clone(), label.clone(), (probability >= 0.5) & inputs.inside
    sure = counted.clone()
    for row in range(4):
        other = (row + 1) % 4
        images[row][:, boxes[row]] = strong[other][:, boxes[row]]
        labels[row][boxes[row]] = label[other][boxes[row]]
        counted[row][boxes[row]] = sure[other][boxes[row]]
    assert 0 < counted.float().mean() < 1
    loss = F.cross_entropy(network(normalize(images)).logits, labels, reduction="none")
    propagate(2.0 * (loss * counted).sum() / counted.numel())
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["paper", "fixmatch"])
def test_class_weights_reach_labeled_and_unlabeled_images(
    network: GuidedMixNet, teacher: GuidedMixNet, inputs: StepInput, name: str
) -> None:
    network.eval()
    method = sure_of_some(name)
    plain, doubled = (
        guidedmix_step(
            network,
            replace(inputs, random=np.random.default_rng(0)),
            propagate,
            method=method,
            classes=CLASSES,
            average=teacher,
            class_weights=weights,
        )
        for weights in (None, torch.full((21,), 2.0))
    )
    assert plain.unlabeled > 0
    torch.testing.assert_close(doubled.cross_entropy, 2 * plain.cross_entropy)
    torch.testing.assert_close(doubled.unlabeled, 2 * plain.unlabeled)


CHANGES: list[dict[str, object]] = [
    {"confidence": 0.3},
    {"margin": True},
    {"margin": False},
    {"unlabeled_loss": "squared"},
    {"unlabeled_loss": "cross-entropy"},
    {"cutmix": 1.0},
    {"pseudo": "direct"},
    {"pseudo": "decoupled"},
    {"teacher": "student"},
    {"teacher": "average"},
    {"view": "weak"},
    {"view": "strong"},
]


def sure_of_some(name: str) -> MethodConfig:
    """A recipe with a confidence that a random network reaches; `fixmatch` also with mixed images."""
    if name == "fixmatch, decoupled":
        return replace(sure_of_some("fixmatch"), pseudo="decoupled")
    method = recipe_method(name)
    return method if name == "paper" else replace(method, confidence=0.2)


def real_changes() -> list[tuple[str, dict[str, object]]]:
    """Recipes and what can be changed in them: neither what they have already, nor what is refused."""
    pairs = [(base, change) for base in ("paper", "fixmatch", "fixmatch, decoupled") for change in CHANGES]
    changed = [(replace(sure_of_some(base), **change), base, change) for base, change in pairs]  # type: ignore[arg-type]
    return [
        (base, change)
        for method, base, change in changed
        if method != sure_of_some(base)
        and (method.pseudo, method.view, method.teacher) != ("direct", "weak", "student")
    ]


@pytest.mark.parametrize(("base", "change"), real_changes(), ids=str)
def test_every_switch_changes_the_gradient(
    network: GuidedMixNet, teacher: GuidedMixNet, inputs: StepInput, base: str, change: dict[str, object]
) -> None:
    method = sure_of_some(base)
    changed = replace(method, **change)  # type: ignore[arg-type]
    before, after = (run_step(network, inputs, each, teacher) for each in (method, changed))
    same = all(torch.allclose(before[name], after[name], rtol=1e-4, atol=1e-7) for name in before)
    assert same == (method.view == "weak" and "cutmix" in change)


def test_strong_views_depend_on_their_generator_alone(inputs: StepInput) -> None:
    assert inputs.unlabeled is not None
    state = torch.get_rng_state()
    first, again, other = (change_colors(inputs.unlabeled, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == inputs.unlabeled.shape
    assert first.dtype == torch.uint8
    assert torch.equal(torch.get_rng_state(), state)


def test_boxes_show_the_next_image() -> None:
    boxes = torch.from_numpy(draw_boxes(200, (30, 40), share=0.5, random=np.random.default_rng(0)))
    areas = boxes.flatten(1).float().mean(1)
    assert 0.35 < (areas > 0).float().mean() < 0.65
    assert areas.max() < 0.45
    values = torch.arange(200).view(200, 1, 1, 1).expand(200, 2, 30, 40)
    pasted = paste(values, boxes)
    assert torch.equal(pasted[5][:, boxes[5]], torch.full_like(pasted[5][:, boxes[5]], 6))
    assert (pasted[5][:, ~boxes[5]] == 5).all()
    last = torch.from_numpy(draw_boxes(2, (8, 8), share=1.0, random=np.random.default_rng(0)))
    assert paste(torch.tensor([[[0.0]], [[1.0]]]).expand(2, 8, 8), last)[1][last[1]].eq(0).all()


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ({"method.teacher": "average"}, "needs an average of the weights"),
        ({"method.view": "strong", "method.batch_norm": "joint"}, "needs a separate forward pass"),
        ({"method.view": "strong", "method.detach": "none"}, "and a detached pseudo mask"),
        ({"method.pseudo": "direct"}, "compare a prediction with itself"),
    ],
)
def test_contradictions_are_one_line(toy_settings: Settings, assignments: Settings, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build_config(toy_settings, assignments)


@pytest.mark.parametrize("name", sorted({*RECIPES} - {"plus"}))  # the same as `probe`
def test_every_recipe_trains(toy_settings: Settings, tmp_path: Path, name: str) -> None:
    short = {
        "optim.iterations": 6,
        "run.log_every": 1,
        "probe.steps": 10,
        "probe.labeled_pixels": 20,
        "probe.unlabeled_pixels": 20,
        "probe.scales": (1.0,),
        "probe.input_scales": (1.0,),
        "probe.rounds": 1,
        "model.encoder": "toy",
    }
    config = build_config(toy_settings, RECIPES[name], short)
    train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "val"
    steps = 0 if name == "probe" else 6  # the probe is fitted, not trained step by step
    assert [line["skipped"] for line in lines if line["kind"] == "train"] == [0] * steps


def test_a_recipe_is_chosen_on_the_command_line(toy_data: Path, tmp_path: Path, cli: Cli) -> None:
    options = ["--data", toy_data, "--labels", toy_data / "splits/labeled.txt", "--out", tmp_path / "run"]
    code, _, err = cli(["train", "voc", "--recipe", "fixmach", *options])
    assert code == 2
    assert "unknown recipe fixmach; did you mean fixmatch?" in err
    assert not (tmp_path / "run").exists()
