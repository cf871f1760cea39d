"""`--init` and `--teacher`: a run that starts from another, or learns from it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Cli
from gmtool_training.engine.build_step import build_step
from gmtool_training.engine.machine import Machine
from gmtool_training.loop.run import train
from gmtool_training.method.other_run import load_teacher
from gmtool_training.recipes.configure import configure
from gmtool_training.recipes.recipes import RECIPES

from gmtool.classes import load_classes
from gmtool.config import ModelConfig
from gmtool.errors import CheckpointError
from gmtool.nn.checkpoint import build_network, load_network
from gmtool.nn.initial_weights import load_initial_weights
from gmtool.nn.model import normalize
from gmtool.settings import Settings, build_config


def test_scores_follow_the_names_of_classes_and_new_ones_start_anew(toy_run: Path) -> None:
    earlier, checkpoint = load_network(toy_run, "best")
    names = checkpoint.classes.names
    now = replace(
        checkpoint.classes,
        names=("new", *reversed(names)),
        palette=((1, 2, 3), *reversed(checkpoint.classes.palette)),
        raw_ids=tuple(range(len(names) + 1)),
        background=None,
    )
    torch.manual_seed(0)
    network = build_network(checkpoint.model, now)
    line = load_initial_weights(network, now, str(toy_run))
    assert "new classes with a random start: new" in line
    image = normalize(torch.randint(256, (1, 3, 40, 56)))
    with torch.no_grad():
        old, new = earlier.eval()(image), network.eval()(image)
    torch.testing.assert_close(new.logits[:, 1:], old.logits.flip(1))
    kept = [now.names[1:].index(names[index]) + 1 for index in checkpoint.classes.foreground]
    torch.testing.assert_close(new.image_logits[:, kept], old.image_logits)


def test_another_encoder_is_refused(toy_run: Path) -> None:
    _, checkpoint = load_network(toy_run, "best")
    network = build_network(ModelConfig(encoder="resnet18"), checkpoint.classes)
    with pytest.raises(CheckpointError, match="its encoder is toy, not that of this run"):
        load_initial_weights(network, checkpoint.classes, str(toy_run))


def test_a_run_starts_with_the_network_of_an_earlier_one(toy_run: Path, toy_settings: Settings) -> None:
    own = {name: value for name, value in toy_settings.items() if not name.startswith("model.")}
    config = configure("voc", {"model.init": str(toy_run)}, settings=own)
    earlier, checkpoint = load_network(toy_run, "best")
    assert (config.model.encoder, config.model.decoder_channels) == ("toy", checkpoint.model.decoder_channels)
    network = build_network(config.model, checkpoint.classes)
    load_initial_weights(network, checkpoint.classes, str(toy_run))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in earlier.state_dict().items())


def test_training_goes_on_from_the_weights_of_init(toy_run: Path, toy_settings: Settings, tmp_path: Path) -> None:
    small = {"model.init": str(toy_run), "optim.iterations": 1, "optim.lr": 1e-12, "run.validations": 1}
    result = train(build_config(toy_settings, small, {"method.name": "supervised"}), tmp_path / "run")
    assert result.report.miou == pytest.approx(load_network(toy_run, "best")[1].miou, abs=0.02)


def test_the_probe_starts_from_its_earlier_hidden_layer(toy_settings: Settings, tmp_path: Path) -> None:
    probe: Settings = {
        "method.name": "probe",
        "model.decoder": "pyramid",
        "model.decoder_channels": 16,
        "probe.steps": 30,
        "probe.rounds": 0,
        "probe.head": "hidden",
    }
    train(build_config(toy_settings, probe), tmp_path / "first")
    before = load_network(tmp_path / "first", "last")[0].state_dict()
    again = {"model.init": str(tmp_path / "first"), "probe.steps": 1}  # the first of a warm-up: a small rate
    train(build_config(toy_settings, probe, again), tmp_path / "second")
    after = load_network(tmp_path / "second", "last")[0].state_dict()
    torch.testing.assert_close(after["decoder.last.weight"], before["decoder.last.weight"], rtol=0, atol=1e-3)


def test_a_teacher_of_another_run_scores_our_classes(toy_run: Path) -> None:
    earlier, checkpoint = load_network(toy_run, "best")
    names = checkpoint.classes.names
    ours = replace(
        checkpoint.classes,
        names=("new", *reversed(names)),
        palette=((1, 2, 3), *reversed(checkpoint.classes.palette)),
        raw_ids=tuple(range(len(names) + 1)),
        background=None,
    )
    teacher = load_teacher(str(toy_run), ours, torch.device("cpu")).train()
    image = normalize(torch.randint(256, (2, 3, 32, 48)))
    with torch.no_grad():
        logits = teacher(image).logits
        torch.testing.assert_close(logits[:, 1:], earlier.eval()(image).logits.flip(1))
    assert logits.softmax(dim=1)[:, 0].max() == 0
    with pytest.raises(CheckpointError, match="none of the classes .* is among its own"):
        load_teacher(str(toy_run), load_classes("cityscapes"), torch.device("cpu"))


@pytest.mark.parametrize("recipe", ["fixmatch", "paper", "probe"])
def test_recipes_learn_from_the_teacher_of_another_run(
    recipe: str, toy_run: Path, toy_data: Path, tmp_path: Path, cli: Cli
) -> None:
    small = ("data.crop_px=32", "data.labeled_batch=4", "data.unlabeled_batch=4", "data.workers=0")
    network = ("model.encoder=toy", "model.decoder_channels=32", "model.encoder_weights=none", "probe.steps=10")
    settings = [part for each in (*small, *network) for part in ("--set", each)]
    place = ["--classes", toy_data / "classes.json", "--labels", toy_data / "splits/labeled.txt"]
    steps = ["--set", "probe.input_scales=[1.0]"]
    if recipe != "probe":
        steps = ["--iterations", "3", "--set", "method.warmup_fraction=0"]
    source = ["--recipe", recipe, "--teacher", toy_run, "--out", tmp_path / "run"]
    code, _, err = cli(["train", "voc", "--data", toy_data, *place, *settings, *steps, *source])
    assert code == 0, err
    assert f"teacher {toy_run}, encoder toy" in err
    assert f'teacher_run = "{toy_run}"' in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize("teacher", ["average", "of another run"])
def test_the_teacher_computes_in_the_precision_of_the_run(
    teacher: str, toy_run: Path, toy_settings: Settings
) -> None:
    network, checkpoint = load_network(toy_run, "best")
    other = {"method.teacher_run": str(toy_run)} if teacher != "average" else {}
    config = build_config(toy_settings, RECIPES["fixmatch"], other)
    machine = Machine(torch.device("cpu"), "bf16-mixed")
    step = build_step(config.method, checkpoint.classes, machine, average=network, class_weights=None)
    dtypes = set()
    with torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, output: dtypes.add(output.dtype) if isinstance(module, torch.nn.Conv2d) else None
    ):
        logits = step.keywords["average"](torch.zeros(1, 3, 32, 48)).logits  # type: ignore[attr-defined]
    assert dtypes == {torch.bfloat16}
    assert logits.dtype == torch.float32
