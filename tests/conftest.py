"""Toy data, a trained toy run and its exported model, each made once a session. One thread, offline."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy or torch: children inherit it too

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gmtool.cli import app as command_line
from gmtool.config import TrainConfig
from gmtool.settings import Settings, build_config
from gmtool.toy import ToyConfig, generate_toy

torch.set_num_threads(1)

TOY = ToyConfig(labeled=8, unlabeled=12, val=4, height_px=48, width_px=64, seed=3)

SMALL: Settings = {
    "data.crop_px": 32,
    "data.labeled_batch": 4,
    "data.unlabeled_batch": 4,
    "data.workers": 0,
    "model.encoder": "toy",
    "model.encoder_weights": "none",
    "model.decoder_channels": 32,
    "optim.iterations": 40,
    "optim.lr": 0.02,
    "optim.head_lr_multiplier": 1.0,
    "run.device": "cpu",
    "run.precision": "32-true",
    "run.validations": 2,
}


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 8 labeled, 12 unlabeled and 4 validation images of 64x48 in VOC layout. Not to be changed."""
    root = tmp_path_factory.mktemp("toy") / "data"
    generate_toy(root, TOY)
    return root


@pytest.fixture(scope="session")
def toy_settings(toy_data: Path) -> Settings:
    """Settings of a run of a second or two on `toy_data`."""
    return {
        **SMALL,
        "data.root": toy_data,
        "data.classes": str(toy_data / "classes.json"),
        "data.labeled": toy_data / "splits" / "labeled.txt",
    }


@pytest.fixture(scope="session")
def toy_config(toy_settings: Settings) -> TrainConfig:
    """The same as a configuration."""
    return build_config(toy_settings)


@pytest.fixture(scope="session")
def toy_run(toy_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run folder. Not to be changed."""
    from gmtool_training.run import train

    run_dir = tmp_path_factory.mktemp("runs") / "toy"
    train(toy_config, run_dir)
    return run_dir


@pytest.fixture(scope="session")
def toy_model(toy_run: Path) -> Path:
    """The exported model of `toy_run`."""
    from gmtool_export.run import export_run

    return export_run(toy_run).path


class Cli:
    """Runs the command line in this process; an expected failure ends it as it ends the program."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capfd, self._monkeypatch = capfd, monkeypatch

    def __call__(self, arguments: Sequence[object]) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        self._monkeypatch.setattr(sys, "argv", ["gmtool", *map(str, arguments)])
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            command_line.run()
        out, err = self._capfd.readouterr()
        code = exit_info.value.code
        assert isinstance(code, int)
        return code, out, err


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line as a function."""
    from gmtool import console

    # Consoles keep the stream that they were made with
    console.stderr.cache_clear()
    console.stdout.cache_clear()
    return Cli(capfd, monkeypatch)
