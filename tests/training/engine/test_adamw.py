"""AdamW beside SGD: the steps of torch's own, skipped steps, exact resume, contradicting settings."""

import json
from pathlib import Path

import pytest
import torch
from gmtool_training.engine.optim import build_optimizer, restore_state, set_learning_rates, state_tensors
from gmtool_training.loop import fit as fit_module
from gmtool_training.loop import hooks as hooks_module
from gmtool_training.loop.run import resume, train
from torch import nn

from gmtool.classes import load_classes
from gmtool.config import ModelConfig, OptimConfig
from gmtool.errors import ConfigError
from gmtool.nn.checkpoint import build_network
from gmtool.nn.model import GuidedMixNet
from gmtool.settings import Settings, build_config, dump_config, load_config

ADAMW = OptimConfig(
    name="adamw", lr=0.01, head_lr_multiplier=3.0, betas=(0.8, 0.9), weight_decay=0.1, iterations=10
)


@pytest.fixture
def network() -> GuidedMixNet:
    torch.manual_seed(0)
    return build_network(ModelConfig(encoder="toy", decoder_channels=16), load_classes("voc"))


def set_gradients(network: nn.Module, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=random)


def test_its_steps_are_those_of_torchs_adamw_used_by_hand(network: GuidedMixNet) -> None:
    """One plain optimiser a parameter; the encoder's rate is the low one, and both follow the polynomial."""
    twin = build_network(ModelConfig(encoder="toy", decoder_channels=16), load_classes("voc"))
    twin.load_state_dict(network.state_dict())
    by_hand = [
        (
            name.startswith("encoder."),
            torch.optim.AdamW([each], lr=1, betas=(0.8, 0.9), weight_decay=0.1, foreach=False),
        )
        for name, each in twin.named_parameters()
    ]
    optimizer = build_optimizer(network, ADAMW)
    for done in range(4):
        set_learning_rates(optimizer, ADAMW, done)
        for each in (network, twin):
            set_gradients(each, seed=done)
        optimizer.step()
        rate = 0.01 * (1 - done / 10) ** 0.9
        for is_encoder, alone in by_hand:
            alone.param_groups[0]["lr"] = rate if is_encoder else 3.0 * rate
            alone.step()
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_skipped_step_leaves_weights_moments_and_the_count_of_steps_alone(network: GuidedMixNet) -> None:
    optimizer = build_optimizer(network, ADAMW)
    weight = network.classifier.weight
    for number, skip in enumerate((1.0, 0.0, 1.0)):
        set_gradients(network, seed=number)
        before = weight.detach().clone()
        optimizer.found_inf = torch.tensor(skip)  # type: ignore[attr-defined]
        optimizer.step()
        assert torch.equal(weight, before) == bool(skip)
    state = optimizer.state[weight]
    assert state["step"] == 1
    torch.testing.assert_close(state["exp_avg"] / (1 - 0.8), seeded_gradient(network, weight, seed=1))


def seeded_gradient(network: nn.Module, wanted: torch.Tensor, *, seed: int) -> torch.Tensor:
    set_gradients(network, seed)
    assert wanted.grad is not None
    return wanted.grad


def test_its_state_round_trips(network: GuidedMixNet) -> None:
    first, second = build_optimizer(network, ADAMW), build_optimizer(network, ADAMW)
    set_gradients(network, seed=0)
    first.step()
    saved = state_tensors(first)
    assert {name.rpartition(".")[0] for name in saved} == {"exp_avg", "exp_avg_sq", "step"}
    restore_state(second, saved | {"sums": torch.zeros(3), "network.encoder.0": torch.zeros(3)})
    again = state_tensors(second)
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[name], again[name]) for name in saved)


def test_a_stopped_and_resumed_run_ends_as_one_that_was_never_stopped(
    toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(
        toy_settings,
        {
            "optim.name": "adamw",
            "optim.lr": 1e-3,
            "optim.betas": (0.9, 0.95),
            "optim.iterations": 5,
            "run.validations": 1,
            "run.save_every": 2,
            "method.warmup_fraction": 0.2,
        },
    )
    (tmp_path / "config.toml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.toml").optim == config.optim
    monkeypatch.setattr(hooks_module, "_draw", lambda *_: None)
    train(config, tmp_path / "whole")
    update = fit_module._update
    calls = 0

    def fails(*given: object, **named: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        update(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_module, "_update", fails)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    monkeypatch.setattr(fit_module, "_update", update)
    resume(tmp_path / "run")
    whole, run = (json.loads((tmp_path / name / "checkpoints/last.json").read_text()) for name in ("whole", "run"))
    assert (whole["sha256"], whole["state_sha256"]) == (run["sha256"], run["state_sha256"])
    with pytest.raises(ConfigError, match="optim.name was adamw, is sgd"):
        resume(tmp_path / "run", {"optim.name": "sgd", "optim.betas": (0.9, 0.999), "optim.iterations": 6})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"optim.name": "adamw", "optim.momentum": 0.8}, "optim.momentum: got 0.8, but optim.name=adamw has none"),
        ({"optim.betas": (0.9, 0.95)}, "optim.betas: got (0.9, 0.95), but optim.name=sgd has none"),
        ({"optim.name": "adam"}, "optim.name"),
        ({"optim.name": "adamw", "optim.betas": (0.9, 1.0)}, "optim.betas"),
    ],
)
def test_settings_that_contradict_the_optimiser_are_refused(
    toy_settings: Settings, asked: Settings, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build_config(toy_settings, asked)
    assert said in str(error.value) and "\n" not in str(error.value)
