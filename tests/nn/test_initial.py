"""A new run that begins with the weights of another one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Cli

from gmtool.classes import load_classes
from gmtool.config import ModelConfig
from gmtool.errors import CheckpointError
from gmtool.nn.checkpoint import build_network, load_network
from gmtool.nn.initial import load_initial_weights


def test_weights_that_fit_are_taken_and_the_others_are_named(toy_run: Path) -> None:
    best, checkpoint = load_network(toy_run, "best")
    same = build_network(checkpoint.model, checkpoint.classes)
    line = load_initial_weights(same, toy_run)
    assert line.startswith(
        f"weights: checkpoint best of {toy_run}, after {checkpoint.iteration} iterations, mIoU "
    )
    assert "random" not in line
    for name, value in best.state_dict().items():
        assert torch.equal(same.state_dict()[name], value), name
    other = build_network(checkpoint.model, load_classes("voc"))
    line = load_initial_weights(other, toy_run)
    assert "with random values, since they do not fit: decoder.classifier.weight" in line
    assert torch.equal(other.encoder.state_dict()["conv1.weight"], best.encoder.state_dict()["conv1.weight"])


def test_another_encoder_is_refused_with_the_setting_that_helps(toy_run: Path) -> None:
    network = build_network(ModelConfig(encoder="resnet18", decoder_channels=32), load_classes("voc"))
    with pytest.raises(CheckpointError, match=r"encoder toy does not fit: train with --set model.encoder=toy"):
        load_initial_weights(network, toy_run)


def test_a_run_with_new_labels_begins_where_resume_says_so(
    toy_run: Path, toy_data: Path, tmp_path: Path, cli: Cli
) -> None:
    """The labeled images have changed: resuming names --init, and that trains."""
    shutil.copytree(toy_run, tmp_path / "run")
    labels = tmp_path / "labeled.txt"
    labels.write_text("\n".join((toy_data / "splits/labeled.txt").read_text().split()[:6]))
    code, _, err = cli(["train", "--resume", tmp_path / "run", "--labels", labels, "--iterations", "60"])
    assert code == 1
    assert err == (
        f"error: the labeled images of {tmp_path / 'run'} have changed since it began, so it cannot go on "
        f"exactly: start a new run from its weights with gmtool train ... --init {tmp_path / 'run'}\n"
    )
    command = ["train", "voc", "--config", toy_run / "config.toml", "--labels", labels, "--iterations", "2"]
    code, _, err = cli([*command, "--init", tmp_path / "run", "--out", tmp_path / "new"])
    assert code == 0, err
    assert f"weights: checkpoint best of {tmp_path / 'run'}, after" in err
    assert json.loads((tmp_path / "new/checkpoints/last.json").read_text())["iteration"] == 2
    code, _, err = cli([*command, "--init", tmp_path / "nothing", "--out", tmp_path / "newer"])
    assert code == 1
    assert "nothing does not exist" in err
