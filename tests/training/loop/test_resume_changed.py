"""A run that goes on elsewhere, longer or beside another one: what may change works, what may not is one line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from gmtool_training.loop.run import resume, train

from gmtool.config import TrainConfig
from gmtool.errors import ConfigError, DataError
from gmtool.settings import Settings, build_config, load_config

SHORT: Settings = {"optim.iterations": 4, "run.validations": 1, "run.log_every": 1, "method.warmup_fraction": 0.5}


@pytest.fixture(scope="module")
def finished(toy_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a list of labeled images beside it, and a finished run of four steps."""
    place = tmp_path_factory.mktemp("finished")
    shutil.copytree(str(toy_settings["data.root"]), place / "data")
    own = {"data.root": place / "data", "data.labeled": place / "data/splits/labeled.txt"}
    config = build_config(toy_settings, SHORT, own, {"data.classes": str(place / "data/classes.json")})
    train(config, place / "run")
    return place


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of it whose settings name the copied data."""
    place = tmp_path / "copied"
    shutil.copytree(finished, place)
    edit(place / "run", lambda text: text.replace(str(finished), str(place)))
    return place


def edit(run_dir: Path, change: Callable[[str], str]) -> None:
    path = run_dir / "config.toml"
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.suffix != ".lock"}


def rates(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("by", ["option", "file"])
def test_more_iterations_follow_the_polynomial_of_the_new_length(copied: Path, cli: Cli, by: str) -> None:
    """And not that of the old one, whose rate is zero at its end."""
    run_dir = copied / "run"
    if by == "option":
        code, _, err = cli(["train", "--resume", run_dir, "--iterations", "8"])
    else:
        edit(run_dir, lambda text: text.replace("iterations = 4", "iterations = 8"))
        code, _, err = cli(["train", "--resume", run_dir])
    assert code == 0, err
    assert "after 4 of 8 iterations" in err
    # The rate that is logged after a step is that of the next one
    assert rates(run_dir)[4:] == pytest.approx([0.02 * (1 - done / 8) ** 0.9 for done in (5, 6, 7, 8)])
    assert load_config(run_dir / "config.toml").optim.iterations == 8
    with pytest.raises(ConfigError, match="is finished: 8 of 8 iterations are done; --iterations N trains"):
        resume(run_dir)


def test_what_does_not_touch_the_computation_may_change(copied: Path) -> None:
    free = {"data.workers": 1, "run.device": "auto", "run.log_every": 2, "run.keep_last": 3, "data.cache": "ram"}
    result = resume(copied / "run", {"optim.iterations": 6, **free})
    written = load_config(result.run_dir / "config.toml")
    assert (written.data.workers, written.data.cache, written.run.keep_last) == (1, "ram", 3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model.decoder_channels", 48),
        ("data.labeled_batch", 6),
        ("data.crop_px", 24),
        ("optim.lr", 0.01),
        ("optim.accumulation", 2),
        ("method.omega_max", 3.5),
        ("run.seed", 1),
        ("data.flip", False),
    ],
)
def test_what_changes_the_computation_is_refused_in_one_line(finished: Path, setting: str, value: object) -> None:
    with pytest.raises(
        ConfigError, match=rf"{setting} was .*, is {value}: .*start a new run from its.* --init .*$"
    ) as raised:
        resume(finished / "run", {setting: value, "optim.iterations": 8})
    assert "\n" not in str(raised.value)
    assert load_config(finished / "run/config.toml").optim.iterations == 4


def test_a_decoder_edited_in_the_file_is_refused_in_one_line(copied: Path, cli: Cli) -> None:
    edit(copied / "run", lambda text: text.replace("decoder_channels = 32", "decoder_channels = 48"))
    code, _, err = cli(["train", "--resume", copied / "run", "--iterations", "8"])
    assert code == 1
    line = err.splitlines()[-1]
    assert line.startswith("error: ") and "model.decoder_channels was 32, is 48" in line


def test_a_run_with_relative_paths_goes_on_from_another_folder(
    toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    shutil.copytree(str(toy_settings["data.root"]), tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    names = {"data.root": "data", "data.labeled": "data/splits/labeled.txt", "data.classes": "data/classes.json"}
    train(build_config(toy_settings, SHORT, names), Path("run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = cli(["train", "--resume", "../run", "--iterations", "6"])
    assert code == 0, err
    assert load_config(tmp_path / "run/config.toml").data.root == tmp_path / "data"


def test_a_run_whose_data_was_moved_says_data_and_goes_on_with_it(copied: Path, tmp_path: Path, cli: Cli) -> None:
    (copied / "data").rename(tmp_path / "moved")
    code, _, err = cli(["train", "--resume", copied / "run", "--iterations", "6"])
    assert code == 1
    assert err.splitlines()[-1].endswith("does not exist: give the folder where it is now with --data DIR")
    code, _, err = cli(["train", "--resume", copied / "run", "--iterations", "6", "--data", tmp_path / "moved"])
    assert code == 0, err
    config = load_config(copied / "run/config.toml").data
    assert (config.root, config.labeled) == (tmp_path / "moved", tmp_path / "moved/splits/labeled.txt")
    assert config.classes == str(tmp_path / "moved/classes.json")


def test_other_data_in_its_place_is_refused(copied: Path, tmp_path: Path) -> None:
    shutil.copytree(copied / "data", tmp_path / "other")
    val = tmp_path / "other/ImageSets/Segmentation/val.txt"
    val.write_text("\n".join(val.read_text().splitlines()[:-1]))
    with pytest.raises(ConfigError, match="the val images of .* have changed"):
        resume(copied / "run", {"optim.iterations": 6, "data.root": tmp_path / "other"})


def test_evaluating_a_run_whose_data_was_moved_says_data(toy_run: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(toy_run, tmp_path / "run")
    config = load_config(tmp_path / "run/config.toml")
    edit(tmp_path / "run", lambda text: text.replace(str(config.data.root), str(tmp_path / "gone")))
    model = tmp_path / "run/export/model_fp32.onnx"
    code, _, err = cli(["evaluate", "--model", model])
    assert code == 1
    assert err.splitlines()[-1].endswith(
        "does not exist: give the folder where it is now with --data DIR --layout voc"
    )
    code, _, err = cli(["evaluate", "--model", model, "--data", config.data.root, "--layout", "voc"])
    assert code == 0, err


HOLD = (
    "import sys; from pathlib import Path; from types import SimpleNamespace\n"
    "from gmtool_training.loop.lock import locked\n"
    "with locked(Path(sys.argv[1]), SimpleNamespace(is_first=True)):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def test_case_50_the_second_of_two_resumes_is_refused(copied: Path, cli: Cli) -> None:
    before = files(copied)
    command = [sys.executable, "-c", HOLD, str(copied / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        code, _, err = cli(["train", "--resume", copied / "run", "--iterations", "8"])
        other.kill()  # and the lock is gone, however a process ends
    assert code == 1
    assert err.splitlines()[-1] == (
        f"error: {copied / 'run'}: another gmtool train writes into this run folder: "
        "wait until it ends, or stop it"
    )
    assert files(copied) == before
    assert load_config(copied / "run/config.toml").optim.iterations == 4
    resume(copied / "run", {"optim.iterations": 5})


def test_case_50_a_run_folder_that_another_run_filled_meanwhile_is_refused(
    toy_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(toy_config, optim=replace(toy_config.optim, iterations=2))

    def other_run() -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/config.toml").write_text("of the other")

    with pytest.raises(ConfigError, match="another gmtool train started in this run folder"):
        train(config, tmp_path / "run", prepare=other_run)
    assert (tmp_path / "run/config.toml").read_text() == "of the other"


def test_a_list_outside_of_the_data_set_that_is_gone_is_named(copied: Path, tmp_path: Path) -> None:
    edit(copied / "run", lambda text: text.replace(str(copied / "data/splits"), str(tmp_path / "gone")))
    with pytest.raises(DataError, match=r"gone/labeled\.txt"):
        resume(copied / "run", {"optim.iterations": 6})
    resume(copied / "run", {"optim.iterations": 6, "data.labeled": copied / "data/splits/labeled.txt"})
