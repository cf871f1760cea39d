"""`gmtool serve` as a process: start, end, and errors of one line."""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Cli
from gmtool_serving.http.models import name_models
from http_service import Client, gradient, png, wait_for

from gmtool.errors import UsageError


@contextmanager
def started(arguments: Sequence[object], **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a service on a free port and wait until it listens; return process and port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gmtool", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if match := re.match(r"listening on http://127\.0\.0\.1:(\d+)/$", line):
                yield process, int(match[1])
                return
        raise AssertionError(process.wait())
    finally:
        process.kill()
        process.communicate()


SLOW = """
import time
import gmtool_serving.backends.onnx_runtime as runtime

predict = runtime.OrtBackend.predict

def slow(self, images):
    time.sleep(float(images.shape[1] == 24) * 1.5)
    return predict(self, images)

runtime.OrtBackend.predict = slow
"""


def test_case_40_sigterm_ends_a_service_once_its_requests_are_answered(toy_model: Path, tmp_path: Path) -> None:
    """Predicting takes long there: a sitecustomize sees to it."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    arguments = [toy_model, "--device", "cpu", "--access-log", "--workers", "1"]
    with started(arguments, PYTHONPATH=str(tmp_path)) as (process, port):
        client = Client(port)
        wait_for(lambda: client.get("/readyz").status == 200)
        statuses: list[int] = []
        asking = threading.Thread(
            target=lambda: statuses.append(client.post("/v1/predict", png(gradient())).status)
        )
        asking.start()
        wait_for(lambda: "gmtool_queue_images 1.0" in client.get("/metrics").body.decode())
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: client.get("/readyz").status == 503)
        late = client.post("/v1/predict", png(gradient(8, 8)))
        assert (late.status, late.code) == (503, "stopping")
        out, err = process.communicate(timeout=20)
        asking.join()
        assert statuses == [200]
        assert process.returncode == 0 and time.monotonic() - asked < 10
        assert "stopping: 1 images in flight" in err and "Traceback" not in err
        assert '"path": "/v1/predict", "query": "", "status": 200' in out
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.1", port).connect()


def test_case_40_a_taken_port_and_a_missing_model_are_one_line(toy_model: Path, cli: Cli, tmp_path: Path) -> None:
    with started([toy_model, "--device", "cpu", "--workers", "0"]) as (process, port):
        code, out, err = cli(["serve", toy_model, "--port", port])
        assert (code, out) == (1, "")
        assert err.startswith(f"error: --host 127.0.0.1 --port {port}: Address already in use: ")
        assert len(err.splitlines()) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0  # Ctrl-C is how a service is ended
    code, out, err = cli(["serve", tmp_path / "none.onnx", "--port", 0])
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith(f"error: model {tmp_path / 'none.onnx'}: no such file")


def test_models_are_named_by_file_run_folder_or_as_told(toy_run: Path, toy_model: Path) -> None:
    assert name_models([str(toy_model)]) == {"model_fp32": toy_model}
    assert name_models([str(toy_run), f"b={toy_run}"]) == {toy_run.name: toy_model, "b": toy_model}
    with pytest.raises(UsageError, match="two models are named model_fp32"):
        name_models([str(toy_model), str(toy_model)])
    with pytest.raises(UsageError, match="cannot be a part of a URL"):
        name_models([f"a/b={toy_model}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "65535"),
        (["--queue", "0"], "--queue"),
        (["--token", "none"], "--token none: cannot be read"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--samples", "none"], "none: cannot be read"),
    ],
)
def test_wrong_options_are_one_line(
    cli: Cli, toy_model: Path, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(["serve", toy_model, *arguments])
    assert code in (1, 2) and message in err and out == ""


def test_the_help_of_serve_imports_no_server() -> None:
    script = (
        "import sys; from gmtool.cli.app import make_app; app = make_app(['serve']); "
        "app(['serve', '--help'], standalone_mode=False); "
        "print([name for name in ('numpy', 'starlette', 'uvicorn', 'prometheus_client') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_serving_leaves_torch_out() -> None:
    script = (
        "import sys; import gmtool_serving.http.server, gmtool_serving.http.site.samples; "
        "print([name for name in ('torch', 'torchvision', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
