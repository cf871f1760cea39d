"""A run that was stopped anywhere and resumed ends as one that was never stopped, bit for bit."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from gmtool_training.engine import build_step as build_step_module
from gmtool_training.engine.machine import Machine
from gmtool_training.loop import run as run_module
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.loop.resumable import check_resume, finished
from gmtool_training.loop.run import resume, train
from gmtool_training.loop.stop import StopRequest
from gmtool_training.method import step as step_module

from gmtool.artifact.checkpoints import read_sealed, sealed
from gmtool.artifact.run_config import load_run_config
from gmtool.config import TrainConfig
from gmtool.errors import CheckpointError, ConfigError, TerminatedError
from gmtool.files import write_atomically
from gmtool.settings import Settings, build_config, dump_config

SHORT: Settings = {
    "optim.iterations": 9,
    "run.validations": 2,
    "run.save_every": 2,
    "run.log_every": 1,
    "method.warmup_fraction": 0.3,
}


def fingerprint(run_dir: Path) -> dict[str, object]:
    """What must not depend on interruptions: weights, optimiser, scores, and every logged figure but times."""
    last, best = (json.loads((run_dir / "checkpoints" / f"{name}.json").read_text()) for name in ("last", "best"))
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for event in events:
        event.pop("seconds")
        event.pop("images_per_s", None)
    return {
        "weights": last["sha256"],
        "state": last["state_sha256"],
        "training": last["training"],
        "best": (best["sha256"], best["miou"], best["iteration"]),
        "events": events,
        "report": json.loads((run_dir / "report.json").read_text())["confusion_matrix"],
    }


@pytest.fixture(scope="module")
def short_config(toy_settings: Settings) -> TrainConfig:
    return build_config(toy_settings, SHORT)


@pytest.fixture(scope="module")
def uninterrupted(short_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    train(short_config, run_dir)
    return fingerprint(run_dir)


def stops_at(call: int) -> Callable[[Machine], object]:
    """SIGTERM that arrives just before the n-th moment at which a run looks for it."""

    @contextmanager
    def stop_on_signals(machine: Machine, *_: object) -> Iterator[StopRequest]:
        yield Counting(machine)

    class Counting(StopRequest):
        calls = 0

        def raise_between_steps(self, iteration: int) -> None:
            self.raise_within_step()

        def raise_within_step(self) -> None:
            self.calls += 1
            if self.calls >= call:
                raise TerminatedError("asked to end")

    return stop_on_signals


def stop_and_resume(config: TrainConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch, *, call: int) -> None:
    """Train a run that is stopped at the n-th moment, and let it go on to its end."""
    with monkeypatch.context() as patch, pytest.raises(TerminatedError):
        patch.setattr(run_module, "stop_on_signals", stops_at(call))
        train(config, run_dir)
    resume(run_dir)


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 6, 8, 10, 13, 15, 17])
def test_case_30_stopped_in_warm_up_in_a_step_or_in_validation(
    short_config: TrainConfig,
    uninterrupted: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    """Nine steps and two validations of four images are seventeen moments."""
    stop_and_resume(short_config, tmp_path / "run", monkeypatch, call=call)
    assert fingerprint(tmp_path / "run") == uninterrupted


def test_features_that_were_kept_are_computed_again_with_the_same_values(
    short_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        short_config,
        data=replace(short_config.data, kept_crops=2),
        method=replace(short_config.method, name="supervised"),
        optim=replace(short_config.optim, freeze_encoder=True),
    )
    train(config, tmp_path / "whole")
    stop_and_resume(config, tmp_path / "run", monkeypatch, call=8)
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")


def test_stopped_again_and_again(
    short_config: TrainConfig,
    uninterrupted: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "stop_on_signals", stops_at(3))
    with pytest.raises(TerminatedError):
        train(short_config, tmp_path / "run")
    monkeypatch.setattr(run_module, "stop_on_signals", stops_at(6))
    with pytest.raises(TerminatedError):
        resume(tmp_path / "run")
    monkeypatch.undo()
    resume(tmp_path / "run")
    assert fingerprint(tmp_path / "run") == uninterrupted


def test_stopped_between_two_logs_the_next_figures_count_the_steps_before_the_stop_too(
    toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(toy_settings, SHORT, {"optim.iterations": 6, "run.validations": 1, "run.log_every": 5})
    train(config, tmp_path / "whole")
    stop_and_resume(config, tmp_path / "run", monkeypatch, call=4)
    assert json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[1])["iteration"] == 5
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")


def test_case_28_killed_at_a_random_step(
    short_config: TrainConfig, uninterrupted: dict[str, object], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    config = replace(short_config, data=replace(short_config.data, workers=2))
    script = (
        "import sys, time; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from gmtool.settings import load_config; from gmtool_training.loop import fit, run\n"
        "real = fit.RunLog.step\n"
        "fit.RunLog.step = lambda self, iteration: (real(self, iteration), time.sleep(0.2))\n"
        "run.train(load_config(Path(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    (tmp_path / "config.toml").write_text(dump_config(config))
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path / "config.toml", run_dir])
    deadline = time.monotonic() + 90
    while not (run_dir / "checkpoints/last.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.75)
    assert process.poll() is None, "the run ended before it was killed"
    process.kill()
    process.wait()
    resume(run_dir)
    assert fingerprint(run_dir) == uninterrupted


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_the_first_signal_saves_and_the_line_goes_on_exactly(
    short_config: TrainConfig,
    uninterrupted: dict[str, object],
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    name: str,
) -> None:
    real_step = step_module.guidedmix_step
    handler = signal.getsignal(number)  # a Ray of this process leaves one of its own

    def step_with_signal(*arguments: object, **keywords: object) -> object:
        os.kill(os.getpid(), number)
        return real_step(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(build_step_module, "guidedmix_step", step_with_signal)
    (tmp_path / "config.toml").write_text(dump_config(short_config))
    run_dir = tmp_path / "run"
    code, _, err = cli(["train", "voc", "--config", tmp_path / "config.toml", "--out", run_dir])
    assert code == 128 + number, err
    said = f"stopped by {name} after 1 of 9 iterations, saved: gmtool train --resume {run_dir} goes on there"
    assert err.splitlines()[-1] == said
    assert json.loads((run_dir / "checkpoints/last.json").read_text())["iteration"] == 1
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["gmtool"])
    assert signal.getsignal(number) is handler
    code, out, err = cli(["train", "--resume", run_dir])
    assert code == 0, err
    assert "after 1 of 9 iterations" in err
    assert "4 images scored, 0 failed" in out
    assert fingerprint(run_dir) == uninterrupted


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damaged", ["weights", "state", "json", "iteration", "best_miou", "place"])
def test_case_29_and_49_the_checkpoint_before_a_damaged_one_is_used(
    short_config: TrainConfig,
    uninterrupted: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damaged: str,
) -> None:
    run_dir = tmp_path / "run"
    monkeypatch.setattr(run_module, "stop_on_signals", stops_at(4))
    with pytest.raises(TerminatedError):
        train(short_config, run_dir)
    monkeypatch.undo()
    last = run_dir / "checkpoints/last.json"
    value = json.loads(last.read_text())
    assert value["iteration"] == 3
    if damaged == "json":
        last.write_text(last.read_text()[:100])
    elif damaged in ("iteration", "best_miou"):
        changed = value["training"]["progress"] | {damaged: 1}
        last.write_text(json.dumps(value | {"training": value["training"] | {"progress": changed}}))
    elif damaged == "place":
        last.write_text(sealed(read_sealed(last) | {"weights": f"../checkpoints/{value['weights']}"}))
    else:
        flip_a_bit(run_dir / "checkpoints" / value[damaged])
    resume(run_dir)
    assert "resuming from the previous checkpoint, of step 2" in capsys.readouterr().err
    assert fingerprint(run_dir) == uninterrupted


def test_what_cannot_be_resumed_is_one_line(short_config: TrainConfig, tmp_path: Path, cli: Cli) -> None:
    root = tmp_path / "data"
    shutil.copytree(short_config.data.root, root)
    labeled = root / "splits/labeled.txt"
    config = replace(short_config, data=replace(short_config.data, root=root, labeled=labeled))
    run_dir = tmp_path / "run"
    train(config, run_dir)
    for go_on in (resume, lambda path: check_resume(path, {})):  # the second one before torch is imported
        with pytest.raises(ConfigError, match="is finished: 9 of 9 iterations are done; --iterations N"):
            go_on(run_dir)
    early = finished(run_dir, TrainingProgress(iteration=6, stale=3), config)
    assert "6 of 9 iterations are done, stopped early since 3 validations brought no better" in str(early)
    with pytest.raises(CheckpointError, match="is not a run: expected"):
        resume(tmp_path / "nowhere")
    for more in (["voc"], ["--classes", "voc"], ["--recipe", "plus"], ["--out", "elsewhere"]):
        code, _, err = cli(["train", *more, "--resume", run_dir])
        assert code == 2
        assert err == f"error: {more[0]} begins a new run, --resume goes on with one: take one of them\n"
    lines = labeled.read_text().splitlines()
    labeled.write_text("\n".join(lines[:-1]))
    with pytest.raises(ConfigError, match="the labeled images of .* have changed"):
        resume(run_dir)
    labeled.write_text("\n".join(lines))
    for path in (run_dir / "checkpoints").glob("state-*"):
        flip_a_bit(path)
    assert check_resume(run_dir, {}) == load_run_config(run_dir)  # the checkpoint before may be whole
    with pytest.raises(CheckpointError, match="is damaged: its sha256"):
        resume(run_dir)


def test_case_31_a_full_disk_stops_loudly_and_the_checkpoint_before_stands(
    short_config: TrainConfig,
    uninterrupted: dict[str, object],
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_write, writes = write_atomically, 0

    def write_until_full(path: Path, content: bytes | str) -> None:
        nonlocal writes
        writes += 1
        if writes > 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real_write(path, content)

    monkeypatch.setattr("gmtool.nn.saving.write_atomically", write_until_full)
    (tmp_path / "config.toml").write_text(dump_config(short_config))
    run_dir = tmp_path / "run"
    code, _, err = cli(["train", "voc", "--config", tmp_path / "config.toml", "--out", run_dir])
    assert code == 1
    assert err.splitlines()[-1].startswith("error: [Errno 28] No space left on device: ")
    monkeypatch.undo()
    assert json.loads((run_dir / "checkpoints/last.json").read_text())["iteration"] == 2
    resume(run_dir)
    assert fingerprint(run_dir) == uninterrupted
