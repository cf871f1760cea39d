"""Limit of processor time for one image in a Ray worker."""

import subprocess
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("Windows has no timer of processor time", allow_module_level=True)

import signal

BLOCK = "from gmtool_serving.cluster.time_limit import limited_time\nwith limited_time(0.2):\n    "
END = "\nprint('whole')"


def start(statement: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", BLOCK + statement + END], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("statement", ["while True: pass", "sum(range(10**12))"])  # second: holds the lock
def test_an_endless_decoder_ends_its_worker(statement: str) -> None:
    with start(statement) as worker:
        assert worker.communicate(timeout=60)[0] == b""
    assert worker.returncode == -signal.SIGPROF


def test_case_53_time_in_which_a_worker_does_not_compute_does_not_count() -> None:
    with start("print('in', flush=True); input()") as worker:
        assert worker.stdout is not None and worker.stdin is not None
        assert worker.stdout.readline() == b"in\n"
        worker.send_signal(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(0.6)
        worker.send_signal(signal.SIGCONT)
        assert worker.communicate(b"\n", timeout=60)[0] == b"whole\n"


def test_the_limit_ends_with_its_block() -> None:
    with start("pass\nsum(range(3 * 10**7))") as worker:
        assert worker.communicate(timeout=60)[0] == b"whole\n"
