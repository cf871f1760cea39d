"""Ctrl-C and SIGTERM in a program of its own: exit code, one line, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gmtool.cli import signals, train

BLOCKER = """
import os, sys, time

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["BLOCKED"]:
            sys.meta_path.remove(self)
            open(os.environ["REACHED"], "w").close()
            {block}

sys.meta_path.insert(0, Blocker())
"""
WAITING = "time.sleep(600)"
NATIVE = """
            import ctypes
            libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
            libc.pthread_mutex_lock(mutex)
            libc.pthread_mutex_lock(mutex)  # no signal ends this call
"""
"""Two ways in which an import takes long: in Python, and in a native call that lets other threads run."""

NOTHING = ": no checkpoint was saved, so there is nothing to resume"
PREDICT = ["predict", "{toy_data}/JPEGImages", "--out", "{out}", "--model", "{toy_model}", "--device", "cpu"]
CASES = [
    (["info", "nothing"], "typer", WAITING, signal.SIGINT),
    (["info", "nothing"], "typer", WAITING, signal.SIGTERM),
    (["train", "toy"], "torch", NATIVE, signal.SIGINT),
    (["train", "toy"], "torch", WAITING, signal.SIGTERM),
    (["export", "{toy_run}"], "torch", WAITING, signal.SIGINT),
    (["evaluate", "--model", "{toy_model}"], "onnxruntime", WAITING, signal.SIGTERM),
    (PREDICT, "onnxruntime", NATIVE, signal.SIGTERM),
    (PREDICT, "gmtool_serving.pipeline.run", WAITING, signal.SIGINT),
    (PREDICT, "gmtool_serving.outputs.whole_run_files", WAITING, signal.SIGINT),
]


@pytest.mark.parametrize(("arguments", "blocked", "block", "number"), CASES)
def test_case_42_a_signal_at_any_moment_ends_a_command_with_one_line(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    arguments: list[str],
    blocked: str,
    block: str,
    number: signal.Signals,
) -> None:
    places = {"out": tmp_path / "out"}
    for name in ("toy_data", "toy_run", "toy_model"):
        if any(name in argument for argument in arguments):
            places[name] = request.getfixturevalue(name)
    process = start([argument.format(**places) for argument in arguments], tmp_path, blocked, block)
    # As a terminal does it: Ctrl-C reaches all processes of the group
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    asked = time.monotonic()
    out, err = finish(process)
    seconds = time.monotonic() - asked
    assert process.returncode == 128 + number, err
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    usual = ("model ", "speed: ", "loading torch ")
    said = [line for line in err.decode().splitlines() if not line.startswith(usual)]
    resume = ": masks that are done are whole; the same command with --resume does the rest"
    remedy = {"predict": resume, "train": NOTHING}.get(arguments[0], "")
    assert said == [f"stopped by {name}{remedy}"]
    assert seconds < 10, "two on a machine that does nothing else"
    assert not list(tmp_path.rglob("*gmtool-tmp"))
    assert out == b""


def test_case_42_a_second_signal_ends_a_command_at_once(tmp_path: Path) -> None:
    process = start(["train", "toy"], tmp_path, "torch", NATIVE)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    finish(process)
    assert process.returncode == 130
    assert time.monotonic() - asked < 1.2  # `UNWIND_S`, which the first one would have had


def test_case_42_the_line_of_a_stopped_training_names_resume_where_there_is_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals._state, "remedy", "")
    with train.advising_to_resume(tmp_path):
        remedy = signals._state.remedy
        assert callable(remedy)
        assert remedy() == NOTHING
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.json").touch()
        assert remedy() == f": gmtool train --resume {tmp_path} goes on from the last checkpoint"
    assert signals._state.remedy == ""


SAVING_FIRST = """
import time
from gmtool.cli import signals
from types import SimpleNamespace
from gmtool_training.loop.stop import stop_on_signals

signals.raise_on_signals()
signals.advise(": to be resumed")
with stop_on_signals(SimpleNamespace(processes=1), lambda: print("asked", flush=True)) as stop:
    print("ready", flush=True)
    {busy}
print("saved", flush=True)
"""
PYTHON_STEP = "while not stop.is_asked: time.sleep(0.01)"
NATIVE_STEP = NATIVE.replace("\n            ", "\n    ").strip()


@pytest.mark.parametrize(("busy", "twice"), [(PYTHON_STEP, False), ("time.sleep(600)", True), (NATIVE_STEP, True)])
def test_case_42_the_first_ctrl_c_of_training_saves_and_the_second_ends_at_once(busy: str, twice: bool) -> None:
    """A second one also ends a step in native code, of which Python learns only afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING_FIRST.replace("{busy}", busy)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  there are no threads
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    if twice:
        time.sleep(0.1)
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = finish(process)
        assert time.monotonic() - asked < 5, "at once on a machine that does nothing else"
        assert (process.returncode, b"saved" in out) == (130, False)
        assert err == b"stopped by Ctrl-C: to be resumed\n"
    else:
        out, _ = finish(process)
        assert (process.returncode, out) == (0, b"asked\nsaved\n")


def test_a_signal_that_is_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    """As in `nohup`, and for SIGINT in background jobs of a shell."""
    process = start(["info", "nothing"], tmp_path, "typer", "time.sleep(1)", preparing="trap '' INT; ")
    process.send_signal(signal.SIGINT)
    _, err = finish(process)
    assert process.returncode == 1
    assert err.startswith(b"error: nothing: no such file")


def finish(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Wait until a program has ended; return stdout and stderr."""
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def start(
    arguments: Sequence[str], tmp_path: Path, blocked: str, block: str, *, preparing: str = ""
) -> subprocess.Popen[bytes]:
    """Start gmtool and wait until it has come to an import that takes long."""
    site, reached = tmp_path / "site", tmp_path / "reached"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCKER.format(block=block.strip()))
    process = subprocess.Popen(
        ["sh", "-c", f'{preparing}exec "$@"', "sh", sys.executable, "-m", "gmtool", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site), "BLOCKED": blocked, "REACHED": str(reached)},
        start_new_session=True,
        # Background jobs of a shell ignore Ctrl-C, and what they start inherits that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  there are no threads
    )
    deadline = time.monotonic() + 60
    while not reached.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reached.exists(), process.communicate()
    return process
