"""Toy data, a trained toy run and its exported model, made once for all workers. One thread, offline."""

# ruff: noqa: E402  the environment is set before what reads it is imported
from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy or torch: children inherit it too

import gc
import hashlib
import signal
import sys
import tempfile

# Where bytecode is not kept, as in many containers, each process of a test compiles torch anew: 2 s
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx_ir
import pytest
import torch
from filelock import FileLock
from gmtool_export.graph import onnx as onnx_graph
from gmtool_export.graph.deploy import DeployModel
from on_card import card, on_card, toy_model_on_card  # noqa: F401  fixtures of tests/gpu

from gmtool.cli import app as command_line
from gmtool.config import TrainConfig
from gmtool.data.toy import ToyConfig, generate_toy
from gmtool.files import write_atomically
from gmtool.settings import Settings, build_config

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: Ctrl-C would stop nothing
    signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite("backend_contract", "format_contract", "layout_contract")

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


LONGEST = (
    *("test_ray", "test_readme", "test_commands", "test_timm_encoder", "test_processes", "test_resume"),
    "test_runs_on_stand_in_card",
)
"""Files that begin first, so that none of them is what everybody waits for at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; workers take files in this order (--no-loadscope-reorder)."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Keep the collector from walking through all imported modules again and again: a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


_trace = onnx_graph.trace
_own_traces = tempfile.TemporaryDirectory(prefix="gmtool-traces-")
TRACES = Path(os.environ.setdefault("GMTOOL_TEST_TRACES", _own_traces.name))
"""Traced graphs by digest; the workers inherit the folder of the process that started them."""


def trace_once(model: DeployModel) -> torch.onnx.ONNXProgram:
    """Return what `trace` does, which takes 5 s: networks that differ in their weights alone are traced once.

    A traced graph has its weights under their names, as they are: those of `model` are put in.
    """
    digest = hashlib.sha256(repr((model, *map(_attributes, model.modules()))).encode())
    weights = model.state_dict()
    digest.update(repr([(name, value.shape, value.dtype) for name, value in weights.items()]).encode())
    path = TRACES / digest.hexdigest()
    if not path.exists():
        write_atomically(path, _trace(model).model_proto.SerializeToString())
    traced = onnx.load(path, format="protobuf")
    for initializer in traced.graph.initializer:
        if initializer.name in weights:
            initializer.CopyFrom(onnx.numpy_helper.from_array(weights[initializer.name].numpy(), initializer.name))
    return torch.onnx.ONNXProgram(onnx_ir.from_proto(traced), None)


def _attributes(module: torch.nn.Module) -> list[tuple[str, object]]:
    """Return what a module computes with besides its parts and its weights."""
    plain = (bool, int, float, str, tuple, list)
    values = {
        name: each.tolist() if isinstance(each, torch.Tensor) else each for name, each in vars(module).items()
    }
    return [(name, value) for name, value in values.items() if isinstance(value, plain)]


onnx_graph.trace = trace_once


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first worker that needs it fills; the others wait."""
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = place.with_suffix(".done")
    with FileLock(place.with_suffix(".lock")):
        if not done.exists():
            make(place)
            done.touch()
    return place


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 8 labeled, 12 unlabeled and 4 validation images of 64x48 in VOC layout. Not to be changed."""
    return make_once(tmp_path_factory, "toy-data", lambda place: generate_toy(place, TOY))


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
    """The same as a configuration, trained until it knows most of its classes."""
    return build_config(toy_settings, {"method.balance": 0.5, "optim.iterations": 60})


@pytest.fixture(scope="session")
def toy_run(toy_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run folder with its exported model. Not to be changed."""
    from gmtool_export.run import export_run
    from gmtool_training.loop.run import train

    def make(place: Path) -> None:
        train(toy_config, place)
        export_run(place)

    return make_once(tmp_path_factory, "toy-run", make)


@pytest.fixture(scope="session")
def toy_model(toy_run: Path) -> Path:
    """The exported model of `toy_run`."""
    return toy_run / "export" / "model_fp32.onnx"


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
