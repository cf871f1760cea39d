"""`gmtool train DIR`: settings are chosen from the data, said, and can be overridden."""

from pathlib import Path

import pytest
from conftest import Cli
from gmtool_training.recipes.automatic import input_scales

from gmtool.errors import CheckpointError
from gmtool.settings import load_config

COMPARED = ["--set", "probe.steps=10", "--set", "probe.labeled_pixels=40", "--set", "probe.input_scales=[1.0]"]
QUICK = ["--set", "model.encoder=toy", "--set", "probe.head=hidden", "--encoder-weights", "none", *COMPARED]


def labels_of(data: Path) -> list[str | Path]:
    """Return the options that name the labeled images of toy data."""
    return ["--labels", data / "splits/labeled.txt"]


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


def test_a_kind_is_configured_from_the_data_too_unless_it_is_trained_step_by_step(
    toy_data: Path, tmp_path: Path, cli: Cli
) -> None:
    place = [
        "--data",
        toy_data,
        "--classes",
        toy_data / "classes.json",
        "--labels",
        toy_data / "splits/labeled.txt",
    ]
    code, _, err = cli(["train", "voc", *place, *QUICK, "--out", tmp_path / "chosen"])
    assert code == 0, err
    assert load_config(tmp_path / "chosen" / "config.toml").method.name == "probe"
    small = ["--set", "data.crop_px=32", "--set", "model.decoder_channels=32", "--set", "data.workers=0"]
    steps = ["--iterations", "2", "--set", "model.encoder=toy", "--encoder-weights", "none"]
    code, _, err = cli(["train", "voc", *place, *small, *steps, "--out", tmp_path / "paper"])
    assert code == 0, err
    assert load_config(tmp_path / "paper" / "config.toml").method.name == "guidedmix"


def test_encoders_are_compared_on_labels_kept_out_and_the_best_is_trained(
    toy_data: Path, tmp_path: Path, cli: Cli
) -> None:
    arguments = ["--encoders", "toy,resnet18", "--encoder-weights", "none", *COMPARED]
    code, _, err = cli(["train", toy_data, *labels_of(toy_data), *arguments, "--out", tmp_path / "run"])
    assert code == 0, err
    rows = [line.split("|") for line in (tmp_path / "run" / "encoders.md").read_text().splitlines()[2:]]
    scores = {row[1].strip(): float(row[2]) for row in rows}
    assert list(scores) == ["toy", "resnet18"]
    config = load_config(tmp_path / "run" / "config.toml")
    assert scores[config.model.encoder] == max(scores.values())
    assert f"encoder {config.model.encoder}, input scale 1" in err


def test_an_encoder_whose_weights_cannot_be_had_is_left_out(
    toy_data: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(encoder: object, name: str, source: str) -> str:
        if name == "resnet18":
            raise CheckpointError("no network")
        return ""

    monkeypatch.setattr("gmtool_training.probe.encoders.load_encoder_weights", load)
    arguments = ["train", toy_data, *labels_of(toy_data), *COMPARED]
    code, _, err = cli([*arguments, "--encoders", "resnet18,toy", "--out", tmp_path / "run"])
    assert code == 0, err
    assert "| resnet18 | left out: no network |" in (tmp_path / "run" / "encoders.md").read_text()
    code, _, err = cli([*arguments, "--encoders", "resnet18", "--out", tmp_path / "none"])
    assert code == 1
    assert "the weights of none of the encoders can be had" in err


def test_a_folder_is_all_that_is_needed(toy_data: Path, tmp_path: Path, cli: Cli) -> None:
    code, out, err = cli(
        ["train", toy_data, *labels_of(toy_data), *QUICK, "--minutes", "5", "--out", tmp_path / "run"]
    )
    assert code == 0, err
    assert "# mIoU" in out
    for line in ("data set: voc, recognised by JPEGImages/", "recipe probe", "input scale", "about 5 minutes"):
        assert line in err
    config = load_config(tmp_path / "run" / "config.toml")
    assert (config.method.name, config.probe.minutes, config.model.encoder) == ("probe", 5.0, "toy")
    assert config.data.classes == str(toy_data / "classes.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["voc", "--data", "{data}", "--minutes", "3", "--recipe", "paper"],
            "--minutes is for settings chosen from the data and for --recipe plus",
        ),
        (
            ["voc", "--data", "{data}", "--encoders", "toy,resnet18", "--iterations", "3"],
            "--encoders is for settings chosen from the data and for --recipe plus",
        ),
        (["{data}", "--iterations", "3"], "--iterations is for recipes that train step by step"),
        (
            ["{data}", "--recipe", "plus", "--iterations", "3"],
            "--iterations is for recipes that train step by step",
        ),
        (["{data}", "--encoders", "toy,resnet18", "--init", "runs/a"], "take one of them"),
        (["{data}/nowhere"], "no folder of this name either"),
        (["{data}/JPEGImage"], "JPEGImages?"),
        ([], "train what? give the folder of a data set"),
    ],
)
def test_what_cannot_be_is_a_usage_error(toy_data: Path, cli: Cli, arguments: list[str], message: str) -> None:
    code, _, err = cli(["train", *(text.format(data=toy_data) for text in arguments)])
    assert code == 2
    assert message in err


def test_too_few_labels_are_told_before_torch_with_a_way_out(toy_data: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "two.txt").write_text("\n".join((toy_data / "splits/labeled.txt").read_text().splitlines()[:2]))
    code, _, err = cli(["train", toy_data, "--labels", tmp_path / "two.txt", "--out", tmp_path / "run"])
    assert code == 1
    assert "takes at least 3: label more, or give --recipe supervised" in err
    assert not (tmp_path / "run").exists()


def test_gradient_steps_on_own_data_start_from_an_encoder_that_is_installed(
    toy_data: Path, tmp_path: Path, cli: Cli
) -> None:
    quick = ["--iterations", "1", "--set", "data.workers=0", "--set", "data.crop_px=64"]
    quick += ["--set", "data.labeled_batch=2", "--set", "data.unlabeled_batch=2"]
    arguments = [*labels_of(toy_data), *quick, "--recipe", "supervised", "--out", tmp_path / "run"]
    code, _, err = cli(["train", toy_data, *arguments])
    assert code == 0, err
    assert "encoder timm:tf_efficientnet_lite2, decoder pyramid" in err
    config = load_config(tmp_path / "run" / "config.toml")
    assert (config.model.decoder, config.method.name) == ("pyramid", "supervised")
