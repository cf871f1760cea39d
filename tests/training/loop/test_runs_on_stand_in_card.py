"""Whole runs on a stand-in card that computes: no device is mixed, and the weights are those of the processor."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli
from stand_in_cuda.build import SOURCE, build

from gmtool.nn.checkpoint import load_network

NUMBERS = {"number", "index", "copied"}
"""What a card takes from the processor."""
SHARED = ["--encoder-weights", "none", "--seed", "1"]
SETTINGS = ["model.encoder=toy", "model.decoder_channels=16", "run.precision=32-true", "data.workers=0"]
STEPS = [
    *("data.crop_px=32", "data.labeled_batch=2", "data.unlabeled_batch=2", "method.warmup_fraction=0.3"),
    *("run.cuda_graph=false", "run.validations=1"),
]
PROBE = [
    *("probe.steps=5", "probe.rounds=2", "probe.labeled_pixels=30", "probe.unlabeled_pixels=20"),
    *("probe.scales=[1.0]", "probe.input_scales=[1.0,2.0]", "probe.head=hidden"),
]
RUNS = {"probe": PROBE, "paper": STEPS, "fixmatch": STEPS, "supervised": STEPS}


def command(name: str, data: Path, out: Path, device: str) -> list[str]:
    """Return the command line of a run."""
    sets = [part for change in [*SETTINGS, *RUNS[name]] for part in ("--set", change)]
    steps = [] if name == "probe" else ["--recipe", name, "--iterations", "3"]
    labels = ["--labels", str(data / "splits/labeled.txt")]
    place = ["--device", device, "--out", str(out / f"{name}-{device}")]
    return ["train", str(data), *labels, *SHARED, *sets, *steps, *place]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def on_card(toy_data: Path, place: Path) -> dict[str, Any]:
    """What the program printed that makes all runs on the card."""
    if torch.version.cuda is None:
        pytest.skip("needs torch for CUDA")
    commands = json.dumps([command(name, toy_data, place, "cuda") for name in RUNS])
    program = subprocess.run(
        [sys.executable, "-m", "stand_in_cuda.commands", commands],
        cwd=SOURCE.parent,
        env=os.environ | build(place),
        capture_output=True,
        text=True,
        check=False,
    )
    assert program.returncode == 0, program.stderr[-3000:]
    value: dict[str, Any] = json.loads(program.stdout.splitlines()[-1])
    return value | {"err": program.stderr}


def test_the_stand_in_refuses_what_a_card_refuses(on_card: dict[str, Any]) -> None:
    mixed = on_card["mixed"]
    assert {name for name, is_refused in mixed.items() if not is_refused} == NUMBERS


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_on_the_card_gives_the_weights_of_one_on_the_processor(
    name: str, on_card: dict[str, Any], toy_data: Path, place: Path, cli: Cli
) -> None:
    code, _, err = cli(command(name, toy_data, place, "cpu"))
    assert code == 0, err
    assert on_card["codes"][list(RUNS).index(name)] == 0, on_card["err"][-3000:]
    weights, expected = (
        load_network(place / f"{name}-{device}", "last")[0].state_dict() for device in ("cuda", "cpu")
    )
    for key, value in expected.items():
        # Running statistics of a step are computed by another kernel: rounding alone
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_labels_pass_between_pixels_on_the_card_as_on_the_processor(on_card: dict[str, Any]) -> None:
    card, processor, without = (torch.tensor(on_card["self_trained"][name]) for name in ("cuda", "cpu", "without"))
    torch.testing.assert_close(card, processor, rtol=1e-4, atol=1e-5)
    assert (processor - without).abs().max() > 0.01
