"""Steps as a CUDA graph: the same losses, gradients and weights as step by step, whatever a step draws.

No card is needed: the capture is replaced by one that computes again what it was given, from the same tensors.
`gmtool doctor --deep` compares with a real capture on a card.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.engine.average import averaged_copy
from gmtool_training.engine.build_step import build_step
from gmtool_training.engine.graphed_step import WARM_STEPS, Capture, GraphedStep, NoRoomError, can_graph
from gmtool_training.engine.machine import Machine, in_precision
from gmtool_training.method.losses import StepLosses
from gmtool_training.method.step import Backward, Step, StepInput
from torch import Tensor, nn

from gmtool.config import PrecisionName
from gmtool.doctor.deep.steps import CLASSES, step_config
from gmtool.errors import BackendError
from gmtool.nn.checkpoint import build_network
from gmtool.settings import Settings

STEPS, FIRST_UNLABELED = 10, 4
"""Steps of a test; labeled images alone before the second number, as in warm-up."""


def computing_again(network: nn.Module) -> Capture:
    """Return a capture that runs the computation at each replay, and writes into the tensors of the first time."""

    def capture(run: Callable[[], StepLosses]) -> tuple[StepLosses, Callable[[], None]]:
        state = deepcopy(network.state_dict())
        losses = run()
        network.load_state_dict(state)
        gradients = {each: each.grad for each in network.parameters()}

        def replay() -> None:
            network.zero_grad(set_to_none=True)
            again = run()
            for parameter, gradient in gradients.items():
                if gradient is not None and parameter.grad is not None:
                    gradient.copy_(parameter.grad)
            for field in fields(losses):
                value = getattr(losses, field.name)
                if field.name != "omega":
                    value.copy_(getattr(again, field.name))

        return losses, replay

    return capture


def inputs_of_steps(side: int = 32) -> Iterator[StepInput]:
    for index in range(STEPS):
        drawn = torch.Generator().manual_seed(index)
        labeled, others = (
            torch.randint(0, 256, (4, 3, side, side), generator=drawn, dtype=torch.uint8) for _ in range(2)
        )
        masks = torch.randint(0, len(CLASSES), (4, side, side), generator=drawn, dtype=torch.uint8)
        inside = torch.rand((4, side, side), generator=drawn) > 0.2
        has_unlabeled = index >= FIRST_UNLABELED
        yield StepInput(
            LabeledBatch(labeled, masks),
            others if has_unlabeled else None,
            omega=float(index),
            random=np.random.default_rng(index),
            inside=inside if has_unlabeled else None,
        )


def take(
    recipe: str, changes: Settings, precision: PrecisionName, *, graphed: bool
) -> tuple[list[list[float]], Tensor, list[bool]]:
    """Return the losses of some steps, the weights after them, and whether each was replayed."""
    config = step_config(recipe, changes)
    machine = Machine(torch.device("cpu"), precision)
    torch.manual_seed(0)
    network = build_network(config.model, CLASSES).train()
    average = averaged_copy(network) if config.method.teacher == "average" else None
    step: Step = build_step(config.method, CLASSES, machine, average=average, class_weights=None)
    if graphed:
        step = GraphedStep(step, config.method, capture=computing_again(network))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    losses, replayed = [], []
    for inputs in inputs_of_steps():
        optimizer.zero_grad(set_to_none=True)
        found = step(in_precision(network, machine), inputs, machine.backward)
        optimizer.step()
        losses.append([float(getattr(found, field.name)) for field in fields(found)])
        replayed.append(isinstance(step, GraphedStep) and step.is_captured)
    return losses, torch.cat([each.detach().flatten() for each in network.state_dict().values()]), replayed


@pytest.mark.parametrize(
    ("recipe", "changes", "precision"),
    [
        ("supervised", {}, "32-true"),
        ("paper", {}, "bf16-mixed"),
        ("paper", {"method.pairing": "random", "method.batch_norm": "joint"}, "32-true"),
        ("fixmatch", {"method.cutmix": 0.5}, "32-true"),
        ("fixmatch", {"method.pseudo": "decoupled", "method.pairing": "random"}, "32-true"),
    ],
)
def test_replayed_steps_equal_steps_kernel_by_kernel(
    recipe: str, changes: Settings, precision: PrecisionName
) -> None:
    expected, weights, _ = take(recipe, changes, precision, graphed=False)
    losses, found, replayed = take(recipe, changes, precision, graphed=True)
    assert losses == expected
    assert torch.equal(found, weights)
    captured = [index >= WARM_STEPS for index in range(FIRST_UNLABELED)]
    captured += [index >= FIRST_UNLABELED + WARM_STEPS for index in range(FIRST_UNLABELED, STEPS)]
    assert replayed == captured, "anew where unlabeled images come"


@pytest.mark.parametrize(
    ("fails_at", "decoder"),
    [(WARM_STEPS, "guidedmix"), (WARM_STEPS, "pyramid"), (WARM_STEPS + 1, "guidedmix")],
)
def test_a_step_that_cannot_be_captured_is_computed_and_said_once(
    fails_at: int, decoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits for the card in the last step before the capture, or the capture itself fails."""

    def refuse(run: Callable[[], StepLosses]) -> tuple[StepLosses, Callable[[], None]]:
        run()  # a capture ends where it fails; its gradients are of no step
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def step_once(network: nn.Module, inputs: StepInput, backward: Backward) -> StepLosses:
        calls.append(inputs)
        losses = plain(network, inputs, backward)
        if len(calls) == fails_at == WARM_STEPS:
            raise RuntimeError("called a synchronizing CUDA operation")
        return losses

    config = step_config("supervised", {"model.decoder": decoder})
    machine, calls = Machine(torch.device("cpu"), "32-true"), list[StepInput]()
    torch.manual_seed(0)
    network = build_network(config.model, CLASSES).train()
    plain = build_step(config.method, CLASSES, machine, average=None, class_weights=None)
    step = GraphedStep(step_once, config.method, capture=refuse)
    for inputs in inputs_of_steps():
        given = replace(inputs, unlabeled=None, inside=None)
        start, random, after = deepcopy(network.state_dict()), torch.get_rng_state(), []
        for each in (plain, step):
            network.load_state_dict(start)
            torch.set_rng_state(random)
            network.zero_grad(set_to_none=True)
            each(network, given, machine.backward)
            gradients = [one.grad.flatten() for one in network.parameters() if one.grad is not None]
            state = [value.flatten().double() for value in network.state_dict().values()]
            after.append(torch.cat([*gradients, *state, torch.rand(1)]))
        assert torch.equal(*after), "running statistics and random numbers as of one step"
    assert capsys.readouterr().err.count("each kernel of a step is started by the host: no CUDA graph: ") == 1
    assert not step.is_captured


@pytest.mark.parametrize(("error", "ends"), [(NoRoomError, False), (RuntimeError, True)])
def test_with_dropout_a_capture_that_failed_ends_the_run_and_one_without_room_does_not(
    error: type[RuntimeError], ends: bool
) -> None:
    def refuse(run: Callable[[], StepLosses]) -> tuple[StepLosses, Callable[[], None]]:
        raise error("no")

    machine, config = (
        Machine(torch.device("cpu"), "32-true"),
        step_config("supervised", {"model.decoder": "pyramid"}),
    )
    network = build_network(config.model, CLASSES).train()
    plain = build_step(config.method, CLASSES, machine, average=None, class_weights=None)
    step = GraphedStep(plain, config.method, capture=refuse)
    given = replace(next(inputs_of_steps()), unlabeled=None, inside=None)
    for _ in range(WARM_STEPS):
        step(network, given, machine.backward)
    with pytest.raises(BackendError, match=r"--set run.cuda_graph=false") if ends else nullcontext():
        step(network, given, machine.backward)


def test_a_graph_is_given_up_before_a_validation_and_captured_anew() -> None:
    """Its memory is its own: a validation of large images could not have it."""
    machine, config = Machine(torch.device("cpu"), "32-true"), step_config("supervised", {})
    torch.manual_seed(0)
    network = build_network(config.model, CLASSES).train()
    plain = build_step(config.method, CLASSES, machine, average=None, class_weights=None)
    step = GraphedStep(plain, config.method, capture=computing_again(network))
    given = replace(next(inputs_of_steps()), unlabeled=None, inside=None)
    captured = []

    def validate(images: int) -> int:
        captured.append(step.is_captured)
        return images

    for _ in range(WARM_STEPS + 1):
        step(network, given, machine.backward)
    assert step.is_captured
    assert step.released_before(validate)(7) == 7
    assert captured == [False]
    for _ in range(WARM_STEPS + 1):
        step(network, given, machine.backward)
    assert step.is_captured


def test_too_little_memory_for_the_first_step_is_no_matter_of_the_graph() -> None:
    def full(network: nn.Module, inputs: StepInput, backward: Backward) -> StepLosses:
        raise torch.OutOfMemoryError("CUDA out of memory")

    config = step_config("supervised", {})
    step = GraphedStep(full, config.method, capture=computing_again(nn.Identity()))
    with pytest.raises(torch.OutOfMemoryError):
        step(nn.Identity(), replace(next(inputs_of_steps()), unlabeled=None), lambda _: None)


@pytest.mark.parametrize(
    ("device", "changes", "processes", "expected"),
    [
        ("cuda", {}, 1, True),
        ("cuda", {"run.cuda_graph": False}, 1, False),
        ("cuda", {"optim.accumulation": 2}, 1, False),
        ("cuda", {"run.compile": True}, 1, False),
        ("cuda", {"run.activation_checkpointing": True}, 1, False),
        ("cuda", {}, 2, False),
        ("cpu", {}, 1, False),
    ],
)
def test_which_steps_are_captured(device: str, changes: Settings, processes: int, expected: bool) -> None:
    machine = Machine(torch.device(device), processes=processes)
    assert can_graph(step_config("paper", changes), machine) is expected
