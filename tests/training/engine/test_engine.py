"""What the loop promises beside the method: parts of a batch, steps that are skipped, averages, memory."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gmtool_training.data.batches import LabeledBatch
from gmtool_training.engine import build_step as build_step_module
from gmtool_training.engine.accumulate import propagate, split_batch
from gmtool_training.engine.average import averaged_copy, update_average
from gmtool_training.engine.machine import Machine
from gmtool_training.engine.optim import build_optimizer
from gmtool_training.engine.recompute import recompute_activations
from gmtool_training.loop import hooks as hooks_module
from gmtool_training.loop.figures import StepSums
from gmtool_training.loop.run import resume, train
from gmtool_training.method.losses import StepLosses
from gmtool_training.method.step import StepInput, guidedmix_step, supervised_step
from gmtool_training.watch.log import RunLog
from PIL import Image
from torch import nn

from gmtool.classes import load_classes
from gmtool.config import MethodConfig, ModelConfig, OptimConfig
from gmtool.errors import ConfigError, GmtoolError
from gmtool.nn.checkpoint import build_network, load_network
from gmtool.nn.model import GuidedMixNet
from gmtool.settings import Settings, build_config

CLASSES = load_classes("voc")


@pytest.fixture
def machine() -> Machine:
    return Machine(torch.device("cpu"))


@pytest.fixture
def network() -> GuidedMixNet:
    torch.manual_seed(0)
    return build_network(ModelConfig(encoder="toy", decoder_channels=16), CLASSES)


@pytest.fixture
def inputs() -> StepInput:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 24, 24), dtype=torch.uint8, generator=random)
    masks = torch.randint(0, 21, (4, 24, 24), dtype=torch.uint8, generator=random)
    masks[0] = 255  # the parts have different numbers of pixels that count
    masks[1, :, 5:] = 255
    return StepInput(LabeledBatch(images[:4], masks), images[4:], 2.0, np.random.default_rng(0))


def propagate_alone(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    machine: Machine, network: GuidedMixNet, inputs: StepInput, parts: int
) -> None:
    network.eval()  # batch statistics are those of a part, as they must be
    step = partial(supervised_step, method=MethodConfig(), classes=CLASSES)
    whole = propagate(machine, network, step, [inputs])
    expected = gradients(network)
    network.zero_grad()
    cut = split_batch(machine, inputs, parts=parts, ignore_index=255)
    assert [len(part.labeled.images) for part in cut] == [4 // parts] * parts
    summed = propagate(machine, network, step, cut)
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(summed.cross_entropy, whole.cross_entropy)
    torch.testing.assert_close(summed.classification, whole.classification)


def test_a_batch_that_cannot_be_cut_is_refused(toy_settings: Settings, tmp_path: Path) -> None:
    for accumulation in (3, 4):
        config = build_config(toy_settings, {"optim.accumulation": accumulation})
        with pytest.raises(ConfigError, match=f"need a multiple of {accumulation}, at least {2 * accumulation}"):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_case_35_a_skipped_step_leaves_weights_and_momentum_alone(network: GuidedMixNet, momentum: float) -> None:
    optimizer = build_optimizer(network, OptimConfig(lr=0.1, momentum=momentum))
    sums, one = StepSums(torch.device("cpu")), torch.ones(())
    losses = StepLosses(one, one, one, one, 1.0)
    for bad in (True, False, True, True):
        before = deepcopy((network.state_dict(), optimizer.state_dict()["state"]))
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        if bad:
            assert network.classifier.bias is not None
            network.classifier.bias.grad = torch.full_like(network.classifier.bias, float("nan"))
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        optimizer.found_inf = sums.add(losses, grads, loss_scale=one)  # type: ignore[attr-defined]
        optimizer.step()
        after = (network.state_dict(), optimizer.state_dict()["state"])
        same = all(torch.equal(after[0][name], value) for name, value in before[0].items())
        assert same == bad
        if bad and momentum:
            for index, state in before[1].items():
                assert torch.equal(state["momentum_buffer"], after[1][index]["momentum_buffer"])
    reading = sums.start_interval()()
    assert (reading.skipped, reading.skipped_in_a_row) == (3, 2)
    assert reading.means["ce"] == 1.0, "skipped steps are in no mean"
    assert sums.start_interval()().means["ce"] is None


def poisoned(calls: set[int]) -> Callable[..., StepLosses]:
    """The GuidedMix-Net step with a pseudo mask of NaN in some of its calls."""
    count = 0

    def step(
        network: nn.Module, inputs: StepInput, backward: Callable[..., None], **keywords: object
    ) -> StepLosses:
        nonlocal count
        count += 1
        factor = float("nan") if count in calls else 1.0
        return guidedmix_step(network, replace(inputs, omega=inputs.omega * factor), backward, **keywords)  # type: ignore[arg-type]

    return step


def test_case_35_a_nan_is_skipped_and_counted(
    toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_step_module, "guidedmix_step", poisoned({3, 5}))
    changes = {"optim.iterations": 6, "run.log_every": 1, "run.max_skipped": 1, "method.warmup_fraction": 0}
    train(build_config(toy_settings, changes), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    skipped = [line["skipped"] for line in lines if line["kind"] == "train"]
    assert skipped == [0, 0, 1, 1, 2, 2]
    assert [line["loss"] is None for line in lines if line["kind"] == "train"] == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]
    load_network(tmp_path / "run", "last")


def test_case_35_too_many_in_a_row_stop_with_the_images(
    toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_step_module, "guidedmix_step", poisoned(set(range(3, 100))))
    changes = {
        "optim.iterations": 30,
        "run.log_every": 2,
        "run.max_skipped": 3,
        "run.save_every": 2,
        "method.warmup_fraction": 0,
    }
    with pytest.raises(GmtoolError, match=r"4 steps in a row .* the last with (toy_\d{5}, ){7}toy_\d{5}:"):
        train(build_config(toy_settings, changes), tmp_path / "run")
    _, checkpoint = load_network(tmp_path / "run", "last")
    assert checkpoint.iteration == 4


def test_case_35_a_batch_that_is_all_ignored_counts_for_nothing(network: GuidedMixNet, inputs: StepInput) -> None:
    inputs.labeled.masks.fill_(255)
    losses = guidedmix_step(network, inputs, propagate_alone, method=MethodConfig(), classes=CLASSES)
    assert losses.cross_entropy == 0
    assert all(gradient.isfinite().all() for gradient in gradients(network).values())


def test_the_average_is_the_one_of_the_formula(network: GuidedMixNet) -> None:
    average = averaged_copy(network)
    expected = network.classifier.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            network.classifier.weight += 0.1 * (step + 1)
            network.get_buffer("encoder.bn1.running_mean").add_(1)
        rate = min(0.3, (1 + step) / (10 + step))
        expected = rate * expected + (1 - rate) * network.classifier.weight.detach()
        update_average(average, network, decay=0.3, step=step)
    torch.testing.assert_close(average.classifier.weight, expected)
    name = "encoder.bn1.running_mean"
    assert torch.equal(average.get_buffer(name), network.get_buffer(name))
    assert not average.training
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_recomputed_activations_change_neither_gradient_nor_statistics(
    network: GuidedMixNet, inputs: StepInput
) -> None:
    other = deepcopy(network)
    recompute_activations(other)
    for each in (network.train(), other.train()):
        fresh = replace(inputs, random=np.random.default_rng(0))
        guidedmix_step(each, fresh, propagate_alone, method=MethodConfig(), classes=CLASSES)
    assert list(network.state_dict()) == list(other.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, gradients(other)[name], msg=name)


SHORT: Settings = {"optim.iterations": 6, "run.validations": 3, "run.log_every": 1, "method.warmup_fraction": 0.2}
OPTIONS: dict[str, Settings] = {
    "half, in parts": {"run.precision": "16-mixed", "optim.accumulation": 2},
    "bf16, average, memory": {
        "run.precision": "bf16-mixed",
        "optim.ema_decay": 0.9,
        "run.activation_checkpointing": True,
        "run.channels_last": True,
    },
    "compiled": {"run.compile": True},
}


def final_state(run_dir: Path) -> tuple[str, str, object]:
    last = json.loads((run_dir / "checkpoints/last.json").read_text())
    return last["sha256"], last["state_sha256"], last["training"]


@pytest.mark.parametrize("name", OPTIONS)
def test_case_28_with_every_option_of_the_engine(
    toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Stopped after its third step and resumed, a run ends with the weights and state of a whole one."""
    # The translation into C++ takes a minute; what is captured and how it is called is the same
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = build_config(toy_settings, SHORT, OPTIONS[name])
    train(config, tmp_path / "whole")

    class Killed(BaseException):
        pass

    real_event = RunLog.event

    def event(self: RunLog, kind: str, iteration: int, figures: dict[str, float | None]) -> None:
        real_event(self, kind, iteration, figures)
        if kind == "train" and iteration == 3:
            raise Killed

    monkeypatch.setattr(RunLog, "event", event)
    with pytest.raises(Killed):
        train(config, tmp_path / "killed")
    monkeypatch.setattr(RunLog, "event", real_event)
    assert json.loads((tmp_path / "killed/checkpoints/last.json").read_text())["iteration"] == 2
    resume(tmp_path / "killed")
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "whole")


def test_the_average_is_what_is_saved_and_scored(toy_settings: Settings, tmp_path: Path) -> None:
    changes = {"optim.iterations": 4, "optim.ema_decay": 0.5}
    train(build_config(toy_settings, SHORT, changes), tmp_path / "averaged")
    train(build_config(toy_settings, SHORT, {"optim.iterations": 4}), tmp_path / "plain")
    state = json.loads((tmp_path / "averaged/checkpoints/last.json").read_text())["state"]
    from safetensors.torch import load_file

    trained = load_file(tmp_path / "averaged/checkpoints" / state)["network.decoder.classifier.weight"]
    plain = load_network(tmp_path / "plain", "last")[0].classifier.weight
    averaged = load_network(tmp_path / "averaged", "last")[0].classifier.weight
    assert torch.equal(trained, plain), "averaging does not touch training"
    assert not torch.equal(averaged, plain)


def test_a_run_ends_early_when_asked_to_and_only_then(
    toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.5, 0.3, 0.4, 0.6, 0.7])

    def validate(*_: object, **__: object) -> np.ndarray:
        score = next(scores)
        matrix = np.zeros((6, 6), dtype=np.int64)
        matrix[0, :2] = int(1000 * score), 1000 - int(1000 * score)
        return matrix

    monkeypatch.setattr(hooks_module, "validate", validate)
    changes = {"optim.iterations": 6, "run.validations": 6, "run.patience": 2}
    result = train(build_config(toy_settings, changes), tmp_path / "run")
    assert result.report.best is not None
    assert result.report.best.iteration == 2
    assert load_network(tmp_path / "run", "last")[1].iteration == 4
    with pytest.raises(ConfigError, match="is finished: 4 of 6 iterations"):
        resume(tmp_path / "run")


def test_without_state_checkpoints_are_smaller_and_cannot_be_resumed(
    toy_settings: Settings, tmp_path: Path
) -> None:
    changes = {"optim.iterations": 4, "run.save_state": False}
    train(build_config(toy_settings, changes), tmp_path / "run")
    assert not list((tmp_path / "run/checkpoints").glob("state-*"))
    with pytest.raises(GmtoolError, match="keeps no training state"):
        resume(tmp_path / "run")


def test_a_mask_that_is_all_ignored_does_not_stop_a_run(
    toy_settings: Settings, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    # A run is refused if all masks are so; a crop of one that shows no label is not
    monkeypatch.setattr("gmtool_training.loop.prepare.check_masks", lambda *_: [])
    root = tmp_path / "data"
    shutil.copytree(toy_data, root)
    for name in (root / "splits/labeled.txt").read_text().split():
        path = root / "SegmentationClass" / f"{name}.png"
        Image.new("L", Image.open(path).size, 255).save(path)
    changes: Settings = {"data.root": root, "data.labeled": root / "splits/labeled.txt"}
    train(build_config(toy_settings, SHORT, changes), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [(line["ce"], line["skipped"]) for line in lines if line["kind"] == "train"]
    assert steps == [(0.0, 0)] * 6
