"""A model that does not exist: the error names those that do."""

from pathlib import Path

import pytest
from conftest import Cli

from gmtool.artifact.lookup import find_model
from gmtool.errors import ArtifactError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(run: str) -> None:
    folder = Path("runs") / run / "export"
    folder.mkdir(parents=True)
    (folder / "model_fp32.onnx").touch()


def test_without_any_model_the_commands_that_make_one_are_named(here: Path) -> None:
    with pytest.raises(ArtifactError) as error:
        find_model("runs/nothere")
    assert str(error.value) == (
        "model runs/nothere: no such file or run folder; expected a model_*.onnx of gmtool export, and none is "
        "below runs/: train a run with gmtool train, then gmtool export it"
    )


def test_a_mistyped_run_or_file_names_the_nearest(here: Path) -> None:
    for run in ("street", "cells", "street-2"):
        export(run)
    with pytest.raises(
        ArtifactError, match="^model runs/stret: no such file or run folder; did you mean runs/street"
    ):
        find_model("runs/stret")
    with pytest.raises(ArtifactError, match=r"did you mean runs/cells/export/model_fp32.onnx\?"):
        find_model("runs/cells/export/model_fp16.onnx")
    with pytest.raises(ArtifactError, match="; exported: runs/cells, runs/street, runs/street-2$"):
        find_model("/elsewhere/x")


def test_serve_says_it_in_one_line(here: Path, cli: Cli) -> None:
    export("mine")
    code, out, err = cli(["serve", "runs/nothere"])
    assert (code, out) == (1, "")
    assert err == "error: model runs/nothere: no such file or run folder; did you mean runs/mine?\n"


def test_a_run_with_an_openvino_model_alone_stands_for_that(here: Path) -> None:
    export("street")
    openvino = Path("runs/street/export/model_fp16.xml")
    openvino.touch()
    assert find_model("runs/street").suffix == ".onnx"
    Path("runs/street/export/model_fp32.onnx").unlink()
    assert find_model("runs/street") == openvino
