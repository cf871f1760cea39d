"""Deep check: twenty steps of training in one precision or memory format; the loss falls, resume ends alike."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from gmtool.artifact.run_record import EVENTS_NAME
from gmtool.artifact.runs import CHECKPOINT_DIR
from gmtool.doctor.deep.result import Checked, CheckFailedError, Setting, require
from gmtool.doctor.deep.toy_model import toy_config
from gmtool.nn.checkpoint import load_network
from gmtool.settings import Settings

STEPS, HALF_WAY = 20, 10
VARIANTS: dict[str, Settings] = {
    "bf16-mixed": {"run.precision": "bf16-mixed", "run.channels_last": False},
    "16-mixed": {"run.precision": "16-mixed", "run.channels_last": False},
    "32-true": {"run.precision": "32-true"},
    "channels_last": {"run.precision": "auto", "run.channels_last": True},
    "compiled": {"run.precision": "auto", "run.compile": True},
}
ON_CARD = 0.02
"""Largest distance of the resumed weights, over that of the whole run from its start: not all kernels of a card
have sums in a fixed order. Without its momentum the run ended 0.7 away."""


def check(setting: Setting, variant: str) -> Checked:
    """Train, and train the second half again from its checkpoint."""
    from gmtool_training.loop.run import resume, train

    if setting.place == "cuda" and variant != "compiled":  # Triton's kernels have a fixed order
        _fix_order_of_sums()
    changes: Settings = {
        "run.device": setting.place,
        "run.log_every": 1,
        "run.save_every": HALF_WAY,
        "optim.iterations": STEPS,
        "method.omega_max": 1.0,
        **VARIANTS[variant],
    }
    folder = setting.folder / f"training-{variant}"
    shutil.rmtree(folder, ignore_errors=True)
    # Train: the loss falls, no step is skipped
    whole = folder / "whole"
    train(toy_config(setting, changes), whole)
    losses = _losses(whole)
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    require(last < first, f"cross-entropy rose from {first:.3f} to {last:.3f} in {STEPS} steps")
    # Resume from the checkpoint half way
    half_way, start = _weights(whole, f"iteration-{HALF_WAY:06d}"), folder / "resumed"
    shutil.copytree(whole, start)
    (start / CHECKPOINT_DIR / "last.json").unlink()
    resume(start)
    distance = _distance(_weights(start, "last"), _weights(whole, "last"), half_way)
    allowed = ON_CARD if setting.place == "cuda" else 0.0
    require(distance <= allowed, f"the resumed run ends {distance:.2g} of its way from the uninterrupted one")
    figures = {"first": round(first, 4), "last": round(last, 4), "distance": distance}
    text = f"{STEPS} steps of paper on {setting.place}: cross-entropy {first:.2f} to {last:.2f}, resumed run "
    text += _words(distance)
    # Steps were replayed as a CUDA graph: started kernel by kernel they are the same
    if setting.place == "cuda" and variant != "compiled":
        train(toy_config(setting, {**changes, "run.cuda_graph": False}), folder / "single")
        apart = _distance(_weights(folder / "single", "last"), _weights(whole, "last"), half_way)
        require(apart <= allowed, f"without a CUDA graph the run ends {apart:.2g} of its way from the one with it")
        figures["without_graph"] = apart
        text += f", without a CUDA graph {_words(apart)}"
    return Checked(text, _left_out(setting), figures)


def _words(distance: float) -> str:
    return "equal" if distance == 0 else f"within {distance:.1g}"


def _fix_order_of_sums() -> None:
    """Make torch take kernels whose sums have a fixed order, where it has them.

    With the others two runs of the same steps part: after ten steps on an H200 they were 0.04 of their way away
    from each other, since a pseudo mask that tips over at one pixel pulls the rest along.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # torch asks for it, before cuBLAS is used
    torch.use_deterministic_algorithms(True, warn_only=True)


def _left_out(setting: Setting) -> str | None:
    return "no card" if setting.place == "cpu" else None


def _losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / EVENTS_NAME).read_text().splitlines()]
    steps = [event for event in events if event["kind"] == "train"]
    require(len(steps) == STEPS, f"{len(steps)} of {STEPS} steps were logged")
    if steps[-1]["skipped"] > 1:  # the first scale of 16-mixed may be too large once
        raise CheckFailedError(f"{steps[-1]['skipped']} steps were skipped: their gradients were not finite")
    return [float(event["ce"]) for event in steps if event["ce"] is not None]


def _weights(run: Path, name: str) -> Tensor:
    network, _ = load_network(run, name)
    return torch.cat([parameter.detach().flatten().double() for parameter in network.parameters()])


def _distance(resumed: Tensor, whole: Tensor, half_way: Tensor) -> float:
    """Return the distance of two ends over that of the second half of the way."""
    return float((resumed - whole).norm() / (whole - half_way).norm())
