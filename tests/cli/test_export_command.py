import shutil
from pathlib import Path

import pytest
from conftest import Cli


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Path:
    """A run of one's own to export."""
    return Path(shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))


def test_a_model_goes_into_a_repository_of_triton(run: Path, tmp_path: Path, cli: Cli) -> None:
    options = ["--no-parity", "--triton", tmp_path / "models", "--triton-name", "shapes", "--max-batch", "4"]
    code, out, err = cli(["export", run, *options, "--warmup", "48x64"])
    assert code == 0, err
    assert out.strip() == str(run / "export/model_fp32.onnx")
    made = tmp_path / "models/shapes"
    assert (made / "1/model.onnx").read_bytes() == (run / "export/model_fp32.onnx").read_bytes()
    config = (made / "config.pbtxt").read_text()
    assert "max_batch_size: 4" in config
    assert "dims: [48, 64, 3]" in config
    assert "Triton: version 1 of" in err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max-batch", "4"], "--max-batch does nothing without --triton"),
        (["--triton", "models", "--triton-plan", "a.plan"], "--triton-plan does nothing without --trt"),
        (["--max-shape", "1x64x64"], "--max-shape does nothing without --trt"),
        (["--calibration", "photos"], "--calibration does nothing without --precision int8"),
    ],
)
def test_options_that_would_do_nothing_are_a_wrong_usage(
    run: Path, cli: Cli, options: list[str], expected: str
) -> None:
    code, _, err = cli(["export", run, *options])
    assert code == 2
    assert expected in " ".join(err.split())
    assert not (run / "export").exists()
