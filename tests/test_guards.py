"""What keeps the tests and the checks of a submission from standing still for ever."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

STANDS_STILL = """
import threading, time

def test_that_stands_still():
    threading.Thread(target=time.sleep, args=(60,), name="another thread", daemon=True).start()
    time.sleep(60)
"""


def test_a_test_that_stands_still_fails_with_the_stacks_of_all_threads(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    limit, last = (float(pytestconfig.getini(name)) for name in ("timeout", "faulthandler_timeout"))
    # The second is for native code that keeps the interpreter: it needs no signal handler of Python
    assert 0 < limit < last and pytestconfig.getini("faulthandler_exit_on_timeout")
    (tmp_path / "test_it.py").write_text(STANDS_STILL)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    command += ["-n", "0", "-p", "no:cacheprovider", "-o", "timeout=0.5", str(tmp_path / "test_it.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "Failed: Timeout (>0.5s)" in done.stdout and "Stack of another thread" in done.stdout


def test_every_step_of_a_submission_ends_in_time() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    steps = [line for line in lines if re.match(r"\s*[^#]*\b(uv run|pip install|apt-get \w)", line)]
    assert len(steps) >= 6
    for line in steps:
        guarded = len(re.findall(r"\bwithin \d+m (?:uv run|pip install|apt-get)", line))
        assert guarded == len(re.findall(r"\b(?:uv run|pip install|apt-get (?:update|install))\b", line)), line


def test_only_tensorrt_is_given_a_callback_by_its_own_class() -> None:
    """A logger in Python that native code calls under its lock stops for ever when a collection needs that lock.

    PyAV and OpenCV log without Python unless they are told otherwise; TensorRT's logger runs with the collector
    held off.
    """
    known = re.compile(r"av\.logging|redirectError|ILogger|set_log_callback|set_level\(")
    found = {
        path.relative_to(ROOT).as_posix()
        for part in ("gmtool", "training", "export", "serving")
        for path in (ROOT / part).rglob("*.py")
        if known.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"gmtool/artifact/nvidia.py"}


def test_ffmpeg_does_not_log_through_python() -> None:
    av = pytest.importorskip("av")
    assert av.logging.get_level() is None
