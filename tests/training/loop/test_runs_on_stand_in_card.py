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
from torch import Tensor

from gmtool.nn.checkpoint import load_network

TAKEN_FROM_THE_PROCESSOR = {"number", "index", "copied"}
"""Lines with tensors of two devices that a card computes."""
SETTINGS = ["model.encoder=toy", "model.decoder_channels=16", "run.precision=32-true", "data.workers=0"]
PROBE = [
    *("probe.steps=5", "probe.rounds=2", "probe.labeled_pixels=30", "probe.unlabeled_pixels=20"),
    *("probe.scales=[1.0]", "probe.input_scales=[1.0,2.0]", "probe.head=hidden"),
]
STEPS = ["data.crop_px=32", "data.labeled_batch=2", "data.unlabeled_batch=2", "optim.lr=0.01"]
RECIPES = ("paper", "fixmatch", "supervised")
SEMI_SUPERVISED = RECIPES[:2]
"""Their steps are those of `supervised` until unlabeled images come."""


def command(data: Path, place: Path, *, recipe: str, settings: list[str], iterations: int) -> list[str]:
    """Return the command line of a run on the data in `data`, whose folder is `place`."""
    steps = ["--recipe", recipe, "--iterations", str(iterations)] if iterations else []
    sets = [part for change in [*SETTINGS, *settings] for part in ("--set", change)]
    labels = ["--labels", str(data / "splits/labeled.txt"), "--encoder-weights", "none", "--seed", "1"]
    return ["train", str(data), *labels, *sets, *steps, "--out", str(place)]


def few_steps(recipe: str, data: Path, place: Path) -> list[str]:
    """Return a run of the probe, or of some steps: after more of them rounding tips pseudo masks over."""
    if recipe == "probe":
        return command(data, place, recipe=recipe, settings=PROBE, iterations=0)
    settings = [*STEPS, "method.warmup_fraction=0.3", "run.validations=1"]
    return command(data, place, recipe=recipe, settings=settings, iterations=3)


def more_steps(recipe: str, data: Path, place: Path, *, graph: bool) -> list[str]:
    """Return a run in which steps of labels alone, then of both, are replayed, and a graph is given up between."""
    ramp = ["method.warmup_fraction=0.3", "method.ramp_fraction=1.0", "method.confidence=0.1"]
    settings = [*STEPS, *ramp, "run.validations=2", f"run.cuda_graph={str(graph).lower()}"]
    return command(data, place, recipe=recipe, settings=settings, iterations=12)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def on_card(toy_data: Path, place: Path) -> dict[str, Any]:
    """What the program printed that makes all runs on the card, and how each of them ended."""
    if torch.version.cuda is None:
        pytest.skip("needs torch for CUDA")
    runs = {f"{name}-card": few_steps(name, toy_data, place / f"{name}-card") for name in ("probe", *RECIPES)}
    for name in SEMI_SUPERVISED:
        for kind, graph in (("graph", True), ("kernels", False)):
            run = f"{name}-{kind}"
            runs[run] = more_steps(name, toy_data, place / run, graph=graph)
    program = subprocess.run(
        [sys.executable, "-m", "stand_in_cuda.commands", json.dumps(list(runs.values()))],
        cwd=SOURCE.parent,
        env=os.environ | build(place),
        capture_output=True,
        text=True,
        check=False,
    )
    assert program.returncode == 0, program.stderr[-3000:]
    value: dict[str, Any] = json.loads(program.stdout.splitlines()[-1])
    assert value["codes"] == [0] * len(runs), program.stderr[-3000:]
    return value | {"replays": dict(zip(runs, value["replays"], strict=True))}


def weights_of(run: Path) -> dict[str, Tensor]:
    """Return the last weights of a run."""
    return load_network(run, "last")[0].state_dict()


def test_the_stand_in_refuses_what_a_card_refuses(on_card: dict[str, Any]) -> None:
    mixed = on_card["mixed"]
    assert {name for name, is_refused in mixed.items() if not is_refused} == TAKEN_FROM_THE_PROCESSOR


@pytest.mark.usefixtures("on_card")
@pytest.mark.parametrize("name", ["probe", *RECIPES])
def test_a_run_on_the_card_gives_the_weights_of_one_on_the_processor(
    name: str, toy_data: Path, place: Path, cli: Cli
) -> None:
    code, _, err = cli([*few_steps(name, toy_data, place / name), "--device", "cpu"])
    assert code == 0, err
    found = weights_of(place / f"{name}-card")
    for key, value in weights_of(place / name).items():
        # In steps some sums have another order; the probe's are the same bit for bit
        tolerance = 0.0 if name == "probe" else 1e-5
        torch.testing.assert_close(found[key], value, rtol=10 * tolerance, atol=tolerance, msg=key)


@pytest.mark.parametrize("name", SEMI_SUPERVISED)
def test_replayed_steps_are_those_that_the_host_starts_kernel_by_kernel(
    name: str, on_card: dict[str, Any], place: Path
) -> None:
    assert on_card["replays"][f"{name}-graph"] >= 4 and on_card["replays"][f"{name}-kernels"] == 0
    expected = weights_of(place / f"{name}-kernels")
    assert all(torch.equal(value, expected[key]) for key, value in weights_of(place / f"{name}-graph").items())


def test_labels_pass_between_pixels_on_the_card_as_on_the_processor(on_card: dict[str, Any]) -> None:
    card, processor, without = (torch.tensor(on_card["self_trained"][name]) for name in ("cuda", "cpu", "without"))
    torch.testing.assert_close(card, processor, rtol=1e-4, atol=1e-5)
    assert (processor - without).abs().max() > 0.01
