"""Deep check: two processes on one run, through NCCL on two cards, else through gloo on the processor."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from gmtool.artifact.run_record import EVENTS_NAME
from gmtool.config import TrainConfig
from gmtool.doctor.deep.result import Checked, CheckFailedError, Setting, require
from gmtool.doctor.deep.toy_model import toy_config
from gmtool.files import write_atomically
from gmtool.nn.checkpoint import load_network
from gmtool.settings import Settings, dump_config

STEPS = 6
ALIKE = {"cpu": 1e-4, "cuda": 1e-2}
"""Largest distance of the weights over that of the run from its start. Sums on cards have no fixed order."""


def check(setting: Setting) -> Checked:
    """Train with two ranks, and compare with one process that takes the same steps."""
    from gmtool_training.loop.run import train

    place = "cuda" if setting.cards >= 2 else "cpu"
    changes: Settings = {
        "run.device": place,
        "optim.iterations": STEPS,
        "run.log_every": 1,
        "run.save_every": 1,
        "run.keep_last": STEPS,
        "method.name": "supervised",
    }
    config, folder = toy_config(setting, changes), setting.folder / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _train_in_two(config, folder / "two")
    # One thread, as torchrun's processes have: the number of threads changes the order of sums
    torch.set_num_threads(1)
    # On cards batch statistics are of both ranks' images, on processors of each rank's own
    parts = 1 if place == "cuda" else 2
    train(replace(config, optim=replace(config.optim, accumulation=parts)), folder / "one")
    one, two = _weights(folder / "one", "last"), _weights(folder / "two", "last")
    start = _weights(folder / "one", "iteration-000001")
    distance = float((one - two).norm() / (one - start).norm())
    require(distance < ALIKE[place], f"two ranks end {distance:.2g} of the way from one process")
    events = [json.loads(line) for line in (folder / "two" / EVENTS_NAME).read_text().splitlines()]
    require(sum(event["kind"] == "train" for event in events) == STEPS, "not every step was logged once")
    backend = "NCCL on two cards" if place == "cuda" else "gloo on the processor"
    left_out = None if place == "cuda" else f"NCCL: {'one card' if setting.cards else 'no card'}"
    alike = "equal to" if distance == 0 else f"within {distance:.0e} of"
    return Checked(f"{backend}: {STEPS} steps, weights {alike} those of one process", left_out)


def _train_in_two(config: TrainConfig, run: Path) -> None:
    settings = run.with_suffix(".toml")
    write_atomically(settings, dump_config(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    training = ["-m", "gmtool", "train", "voc", "--config", os.fspath(settings), "--out", os.fspath(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *torchrun, *training], env=environment, capture_output=True, text=True, check=False
    )
    sys.stderr.write(done.stderr)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ") or "Error: " in line]
        raise CheckFailedError(f"torchrun ended with {done.returncode}: {[*errors, 'see its output'][0]}")


def _weights(run: Path, name: str) -> torch.Tensor:
    network, _ = load_network(run, name)
    return torch.cat([parameter.detach().flatten().double() for parameter in network.parameters()])
