"""What commands do outside of their output folder: no socket, no file elsewhere, nothing else on stdout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOOK = """
import os, sys
log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
def note(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        os.write(log, f"{event} {arguments!r}\\n".encode())
    elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if isinstance(arguments[0], (str, bytes, os.PathLike)):
            os.write(log, f"write {os.path.abspath(os.fsdecode(arguments[0]))}\\n".encode())
    elif event in CHANGES and not isinstance(arguments[0], int) and arguments[-1] == -1:
        os.write(log, f"write {os.path.abspath(os.fsdecode(arguments[0]))}\\n".encode())
sys.addaudithook(note)
"""
"""A `sitecustomize` that notes sockets and changes of files, in a process and in its children."""


def run(arguments: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with an empty home folder below `folder`; its sockets and writes are in `folder`/audit.log."""
    for name in ("home", "tmp", "hook"):
        (folder / name).mkdir()
    (folder / "hook/sitecustomize.py").write_text(HOOK)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "ORT_", "TORCHINDUCTOR_"))
    }
    environment |= {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(folder / "hook"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AUDIT_LOG": str(folder / "audit.log"),
    }
    command = [sys.executable, "-m", "gmtool", *map(str, arguments)]
    if shutil.which("strace"):  # native code has no audit events
        # seccomp-bpf stops at the calls that are traced alone: all others are as fast as without strace
        trace = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", str(folder / "trace")]
        command = [*trace, "-e", "trace=socket,connect,openat,mkdir", *command]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def outside(folder: Path, *allowed: Path) -> list[str]:
    """Return the sockets that were opened and the files that were changed elsewhere."""
    audited = (folder / "audit.log").read_text().splitlines()
    assert any(line.startswith("write ") for line in audited)  # the hook was at work
    places = tuple(f"write {place}" for place in (folder / "tmp", *allowed, Path("/dev/null"), Path("/dev/shm")))
    found = [line for line in audited if not line.startswith(places)]
    trace = (folder / "trace").read_text().splitlines() if (folder / "trace").exists() else []
    native = tuple(str(place) for place in (folder / "tmp", folder / "audit.log", *allowed, "/dev/"))
    for line in trace:
        changes = "= -1" not in line and ("mkdir(" in line or "O_WRONLY" in line or "O_RDWR" in line)
        if "AF_INET" in line or (changes and not line.split('"')[1].startswith(native)):
            found.append(line)
    return [*found, *(str(path) for path in (folder / "home").rglob("*"))]


def test_case_46_predict_stays_in_its_output_folder(toy_data: Path, toy_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    done = run(["predict", toy_data / "JPEGImages", "--out", out, "--model", toy_model, "--workers", 2], tmp_path)
    assert len(list(out.glob("*.png"))) == 24, done.stderr
    assert outside(tmp_path, out) == []


def test_case_46_evaluate_stays_in_its_output_folder_and_prints_json_alone(
    toy_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    done = run(["evaluate", "--model", toy_model, "--out", out, "--json"], tmp_path)
    assert json.loads(done.stdout)["num_images"] == 4
    assert outside(tmp_path, out) == []


def test_case_46_export_stays_in_its_run(toy_run: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_run, tmp_path / "run")
    run(["export", tmp_path / "run"], tmp_path)
    assert outside(tmp_path, tmp_path / "run") == []


@pytest.mark.parametrize("given", [None, "0"])
def test_case_46_telemetry_is_off_before_onnxruntime_is_imported(given: str | None) -> None:
    script = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import gmtool_serving.backends.onnx_runtime"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [given or "1"]
