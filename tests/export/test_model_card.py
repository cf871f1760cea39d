"""Model card and suggestions of an export."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from conftest import Cli
from gmtool_export.model_card import model_card
from gmtool_export.record import ArtifactRecord
from PIL import Image

from gmtool.artifact import nvidia
from gmtool.artifact.run_record import read_record
from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.resources import EXACT_INT8
from gmtool.settings import load_config


def test_the_card_names_data_scores_and_licences_but_no_folder_of_this_machine(
    toy_run: Path, toy_data: Path
) -> None:
    text = (toy_run / "export/MODEL.md").read_text()
    assert text.startswith("# toy-run\n")
    for part in ("## Use", "## Files", "## Training", "## Scores", "## Licences", "The weights are yours"):
        assert part in text
    assert "| model_fp32.onnx | fp32 |" in text
    assert "encoder's published weights: none: it was trained from random weights" in text
    assert "weak classes (IoU below 50 %): " in text
    assert "95 % interval" in text
    seconds = read_record(toy_run).seconds
    assert seconds > 0 and f"iterations, {seconds / 60:.1f} minutes;" in text
    assert text.count("\n| ") > 8 and "| 5 | ring |" in text
    assert str(toy_data.parent) not in text and os.sep + "tmp" not in text


def test_the_five_lines_of_the_card_run(toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (toy_run / "export/MODEL.md").read_text().split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line]) == 5
    shutil.copy(toy_run / "export/model_fp32.onnx", tmp_path)
    Image.fromarray(np.zeros((48, 64, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "MODEL.md", "exec"), names)
    mask = names["mask"]
    assert isinstance(mask, np.ndarray) and mask.shape == (1, 48, 64)


def test_the_card_of_an_int8_model_opens_it_exactly(
    toy_run: Path, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the option older x86 processors add 8-bit products in 16 bits, which overflow."""
    spec = replace(read_sealed_spec(toy_model.read_bytes(), where=toy_model), precision="int8")
    record = ArtifactRecord("model_int8.onnx", "0" * 64, 9, "best", "int8", 1.0, spec, ())
    text = model_card(toy_run, load_config(toy_run / "config.toml"), record, {})
    code = text.split("```python\n")[1].split("```")[0]
    shutil.copy(toy_model, tmp_path / "model_int8.onnx")
    Image.fromarray(np.zeros((48, 64, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "MODEL.md", "exec"), names)
    session = names["session"]
    assert isinstance(session, ort.InferenceSession)
    assert session.get_session_options().get_session_config_entry(EXACT_INT8[0]) == EXACT_INT8[1]


def test_the_card_of_an_openvino_model_says_its_files(toy_run: Path, toy_model: Path) -> None:
    spec = read_sealed_spec(toy_model.read_bytes(), where=toy_model)
    record = ArtifactRecord("model_fp16.xml", "0" * 64, 9, "best", "fp16", 1.0, spec, ())
    text = model_card(toy_run, load_config(toy_run / "config.toml"), record, {})
    use = '`gmtool.load("model_fp16.xml").predict("photo.jpg").mask`, on processors; it needs its files '
    assert use + "model_fp16.bin and model_fp16.xml.json." in text


@pytest.mark.parametrize(("gpu", "expected"), [(False, "--precision int8"), (True, "--precision fp16")])
def test_suggestions_fit_the_machine(monkeypatch: pytest.MonkeyPatch, gpu: bool, expected: str) -> None:
    from gmtool.cli import export

    monkeypatch.setattr(nvidia, "has_gpu", lambda: gpu)
    assert export._faster_here().startswith(expected)
    assert gpu or "--trt" not in export._faster_here()


def test_a_moved_data_folder_is_noticed_before_the_network_is_loaded(
    cli: Cli, toy_run: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmtool_export import run as run_module

    monkeypatch.setattr(run_module, "load_network", lambda *_: pytest.fail("loaded"))
    run = Path(shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(toy_data), "/nowhere"))
    for options, expected in (
        ([], "or give --images DIR"),
        (["--precision", "int8", "--images", toy_data / "JPEGImages"], "or give --calibration DIR"),
        (["--precision", "int8", "--no-parity"], "or give --calibration DIR"),
    ):
        code, out, err = cli(["export", run, *options])
        assert (code, out) == (1, "") and expected in err
