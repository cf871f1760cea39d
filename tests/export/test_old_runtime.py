"""Exported files in the oldest ONNX Runtime that has a wheel for Python 3.11, in an environment of its own."""

import os
import subprocess
from pathlib import Path

import onnx
import pytest
from gmtool_serving.verification.script import verification_script

from gmtool.artifact.verification import path_beside

OLDEST = "onnxruntime==1.15.0"
REQUIREMENTS = ["--with", OLDEST, "--with", "numpy<2"]


def test_files_have_the_version_that_old_runtimes_read(toy_model: Path) -> None:
    model = onnx.load(toy_model)
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    # ONNX's own table: the first file format of this opset
    assert onnx.helper.find_min_ir_version_for(model.opset_import) <= 8


def test_the_oldest_onnxruntime_computes_the_same(toy_model: Path, tmp_path: Path) -> None:
    """Offline, from uv's cache, which `benchmarks/runtimes.py` fills."""
    script = tmp_path / "check.py"
    script.write_text(verification_script(path_beside(toy_model).read_bytes()))
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    uv = ["uv", "run", "--offline", "--no-project", "--isolated", "--python", "3.11", *REQUIREMENTS]
    try:
        ready = subprocess.run(
            [*uv, "python", "-c", ""], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("uv is not installed")
    if ready.returncode:
        pytest.skip(f"{OLDEST} is not in uv's cache: {ready.stderr.decode(errors='replace').strip()[-200:]}")
    done = subprocess.run(
        [*uv, "python", str(script), str(toy_model)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("100.0000% equal") == 3
    assert "onnxruntime 1.15.0" in done.stdout
