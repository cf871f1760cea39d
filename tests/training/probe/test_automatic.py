"""`gmtool train DIR`: settings are chosen from the data, said, and can be overridden."""

from pathlib import Path

import pytest
from conftest import Cli
from gmtool_training.recipes.automatic import input_scales

from gmtool.settings import load_config

QUICK = ["--set", "model.encoder=toy", "--encoder-weights", "none", "--set", "probe.steps=10"]


@pytest.mark.parametrize(
    ("size", "scales"),
    [
        ((213, 320), (1.0, 2.0)),
        ((360, 480), (1.0, 2.0)),
        ((827, 550), (0.5, 1.0)),
        ((1024, 2048), (0.25, 0.5)),
        ((3000, 4000), (0.25,)),
        ((32, 32), (4.0,)),
    ],
)
def test_candidates_for_the_input_scale_follow_the_size_of_the_images(
    size: tuple[int, int], scales: tuple[float, ...]
) -> None:
    assert input_scales(*size) == scales


def test_a_folder_is_all_that_is_needed(toy_data: Path, tmp_path: Path, cli: Cli) -> None:
    labels = ["--labels", toy_data / "splits/labeled.txt"]
    code, out, err = cli(["train", toy_data, *labels, *QUICK, "--minutes", "5", "--out", tmp_path / "run"])
    assert code == 0, err
    assert "# mIoU" in out
    for line in ("data set: voc, recognised by JPEGImages/", "recipe probe", "input scale", "at most 5 minutes"):
        assert line in err
    config = load_config(tmp_path / "run" / "config.toml")
    assert (config.method.name, config.probe.minutes, config.model.encoder) == ("probe", 5.0, "toy")
    assert config.data.classes == str(toy_data / "classes.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["voc", "--data", "{data}", "--minutes", "3"],
            "--minutes is for gmtool train DIR and for --recipe probe",
        ),
        (["{data}/nowhere"], "unknown data set kind"),
        ([], "train what? give the folder of a data set"),
    ],
)
def test_what_cannot_be_is_a_usage_error(toy_data: Path, cli: Cli, arguments: list[str], message: str) -> None:
    code, _, err = cli(["train", *(text.format(data=toy_data) for text in arguments)])
    assert code == 2
    assert message in err
