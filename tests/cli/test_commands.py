"""The command line as a person meets it: exit codes, one-line errors, what goes to which stream."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL, Cli

from gmtool.api import training

SMALL_FLAGS = [
    item for name, value in SMALL.items() if name != "optim.iterations" for item in ("--set", f"{name}={value}")
]


def test_train_export_predict_evaluate_with_defaults_find_each_other(
    cli: Cli, toy_data: Path, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    classes, labels = toy_data / "classes.json", toy_data / "splits/labeled.txt"
    data = ["--data", toy_data, "--classes", classes, "--labels", labels, "--iterations", "2"]
    code, out, err = cli(["train", "voc", *data, *SMALL_FLAGS])
    assert code == 0, err
    assert out.startswith("# mIoU ")
    assert "gmtool export runs/voc" in err
    shutil.rmtree("runs/voc")  # after two iterations the network knows nothing
    shutil.copytree(toy_run, "runs/voc", ignore=shutil.ignore_patterns("export"))
    code, out, err = cli(["export"])
    assert code == 0, err
    assert out.strip() == "runs/voc/export/model_fp32.onnx"
    code, out, err = cli(["predict", toy_data / "JPEGImages", "--out", "masks", "--device", "cpu"])
    assert code == 0, err
    assert out.startswith("24 masks in masks, 0 failed")
    code, out, err = cli(["evaluate", "--json", "--out", "report", "--device", "cpu"])
    assert code == 0, err
    report = json.loads(out)
    assert report == json.loads((tmp_path / "report/report.json").read_text())
    assert report["num_images"] == 4
    val = toy_data / "ImageSets/Segmentation/val.txt"
    folders = ["--predictions", "masks", "--ground-truth", toy_data / "SegmentationClass"]
    code, out, err = cli(["evaluate", *folders, "--classes", classes, "--list", val, "--json"])
    assert code == 0, err
    assert json.loads(out)["confusion_matrix"] == report["confusion_matrix"]


def test_folder_data_trains_with_its_own_classes_file(
    cli: Cli, toy_data: Path, toy_model: Path, tmp_path: Path
) -> None:
    root = tmp_path / "mine"
    val = set((toy_data / "ImageSets/Segmentation/val.txt").read_text().split())
    for source, kind in (("JPEGImages", "images"), ("SegmentationClass", "masks")):
        for path in (toy_data / source).iterdir():
            target = root / kind / ("val" if path.stem in val else "train") / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    shutil.copy(toy_data / "classes.json", root)
    run = tmp_path / "run"
    flags = ["--data", root, "--labels", toy_data / "splits/labeled.txt", "--iterations", "4", "--out", run]
    code, out, err = cli(["train", "folder", *flags, *SMALL_FLAGS])
    assert code == 0, err
    assert "8 labeled" in err and "12 unlabeled (" in err and ", 4 validation" in err
    assert "| triangle |" in out
    code, out, err = cli(
        ["evaluate", "--model", toy_model, "--data", root, "--layout", "folder", "--device", "cpu"]
    )
    assert code == 0, err
    assert f"on {root}/images/val" in out


def test_demo_goes_the_whole_way(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli(["demo", "--out", tmp_path / "demo", "--iterations", "5"])
    assert code == 0, err
    for word in ("parity", "mIoU", "200 masks", "in all"):
        assert word in out
    assert (tmp_path / "demo/report.md").is_file()
    page = (tmp_path / "demo/report.html").read_text()
    assert page.count("<img") == 4 * 8  # five worst and three median images
    assert out.endswith(f"report: {tmp_path / 'demo/report.html'}\n")
    assert len(list((tmp_path / "demo/masks").glob("*.png"))) == 200
    code, _, err = cli(["demo", "--out", tmp_path / "demo"])
    assert code == 1
    assert "exists already and is not empty" in err


def one_line(err: str) -> str:
    """Return the one line of an expected failure."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


TRAINING_MISTAKES = {
    "kind": (["train", "vok"], "unknown data set kind vok; did you mean voc?"),
    "nothing": (["train"], "train what? give the folder of a data set"),
    "no data": (["train", "voc"], "give --data DIR"),
    "path": (["train", "voc", "--data", "nowhere"], "nowhere does not exist"),
    "setting": (["train", "voc", "--data", "{data}", "--set", "optm.lr=1"], "did you mean optim.lr?"),
    "value": (["train", "voc", "--data", "{data}", "--iterations", "0"], "setting optim.iterations: got 0"),
    "device": (["train", "voc", "--data", "{data}", "--device", "gpu"], "setting run.device: got 'gpu'"),
    "classes": (["train", "voc", "--data", "{data}", "--classes", "citys"], "did you mean cityscapes?"),
    "list": (
        ["train", "voc", "--data", "{data}", "--labels", "no.txt"],
        "split list no.txt does not exist: expected",
    ),
    "config": (["train", "voc", "--data", "{data}", "--config", "no.toml"], "no.toml: cannot be read"),
    "overlap": (
        ["train", "voc", "--data", "{data}", "--labels", "{data}/ImageSets/Segmentation/val.txt"],
        "share 4 images, for example",
    ),
    "empty list": (
        ["train", "voc", "--data", "{data}", "--labels", "{empty}"],
        "is empty: expected one image a line",
    ),
    "layout": (["train", "folder", "--data", "{data}"], "is it of layout voc?"),
    "teacher": (["train", "toy", "--teacher", "nowhere"], "run folder nowhere does not exist"),
    "classes of a teacher": (
        ["train", "{data}", "--recipe", "fixmatch", "--classes", "{other}", "--teacher", "{run}"],
        "none of the classes p, q, r and 3 more is among its own, background, ",
    ),
    "list of toy": (["train", "toy", "--labels", "no.txt"], "split list no.txt does not exist: expected"),
    "classes of toy": (["train", "toy", "--classes", "citys"], "did you mean cityscapes?"),
    "encoders": (
        ["train", "{data}", "--encoders", "resnet50,resnet19"],
        "probe.encoders: got 'resnet19'",
    ),
}


@pytest.mark.parametrize("mistake", TRAINING_MISTAKES)
def test_a_mistake_in_training_is_one_line_and_leaves_nothing(
    cli: Cli, toy_data: Path, toy_run: Path, tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> None:
        raise AssertionError("a mistake was not found before torch is imported")

    arguments, expected = TRAINING_MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "_loading_torch", load)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "other.json").write_text('{"names": ["p", "q", "r", "s", "t", "u"]}')
    files = {name.split(".")[0]: str(tmp_path / name) for name in ("empty.txt", "other.json")}
    places = {"data": str(toy_data), "run": str(toy_run), **files}
    code, out, err = cli([argument.format(**places) for argument in arguments])
    assert (code, out) == (2 if mistake in ("kind", "nothing", "no data") else 1, "")
    assert expected in one_line(err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["export"], "no trained run below runs/"),
        (["export", "nowhere"], "nowhere does not exist"),
        (["predict", "nowhere.jpg", "--out", "masks"], "nowhere.jpg: no such file or folder"),
        (["predict", "{data}/JPEGImages", "--out", "masks"], "no exported model below runs/"),
        (["predict", "{data}/JPEGImages", "--out", "{data}/classes.json"], "cannot be created"),
        (["predict", "{data}/JPEGImages", "--out", "masks", "--model", "{data}/toy.json"], "is not a model"),
        (["evaluate", "--model", "nowhere.onnx"], "no such file"),
        (["evaluate", "--report", "x"], "x: cannot be read"),
        (["evaluate", "--against", "x"], "x: cannot be read"),
    ],
)
def test_a_mistake_elsewhere_is_one_line(
    cli: Cli, toy_data: Path, tmp_path: Path, arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli([argument.format(data=toy_data) for argument in arguments])
    assert (code, out) == (1, "")
    assert expected in one_line(err)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "--predictions", "x"], "--ground-truth DIR"),
        (["evaluate", "--predictions", "x", "--model", "y"], "take one of them"),
        (["evaluate", "--sliding", "512x"], "--sliding 512x: expected HEIGHTxWIDTH"),
        (["evaluate", "--scales", "1,big"], "--scales 1,big: expected numbers"),
        (["evaluate", "--images", "x"], "--images needs --ground-truth DIR"),
        (["evaluate", "--report", "x", "--flip"], "--flip scores anew, --report takes a saved score"),
        (["evaluate", "--set", "optim.lr=1"], "only settings of the data apply"),
        (["train"], "train what?"),
        (["train", "toi"], "unknown data set kind toi; did you mean toy?"),
        (["train", "toy", "--recipe", "plsu"], "unknown recipe plsu; did you mean plus?"),
        (["train", "toy", "--resume", "x"], "toy begins a new run, --resume goes on with one"),
        (["train", "toy", "--set", "optim.lr"], "expected name=value"),
        (["benchmark", "x.onnx", "--size", "big"], "--size big: expected HEIGHTxWIDTH"),
    ],
)
def test_contradictions_and_bad_values_are_wrong_usage(
    cli: Cli, tmp_path: Path, arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(arguments)
    assert (code, out) == (2, "")
    assert expected in one_line(err)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(cli: Cli, toy_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = cli(["train", "toy", "--data", tmp_path / "file" / "data", "--out", tmp_path / "run"])
    assert code == 1
    assert "Not a directory" in one_line(err)


def test_a_wrong_setting_does_not_leave_toy_data_behind(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(["train", "toy", "--set", "optm.lr=1"])
    assert code == 1, err
    assert not (tmp_path / "runs").exists()


def test_usage_errors_exit_with_2(cli: Cli) -> None:
    for arguments in (["predict"], ["train", "--seed"], ["nonsense"], ["evaluate", "--layout", "tree"]):
        code, _, err = cli(arguments)
        assert code == 2, err


def test_case_02_some_bad_images_exit_with_3_and_all_bad_with_1(
    cli: Cli, toy_data: Path, toy_model: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "bad.jpg").write_text("<html>")
    arguments = ["predict", images, "--out", tmp_path / "masks", "--model", toy_model, "--device", "cpu"]
    code, out, err = cli(arguments)
    assert code == 1
    assert "0 masks" in out and "1 failed" in out
    shutil.copy(toy_data / "JPEGImages/toy_00000.jpg", images)
    code, out, err = cli(arguments)
    assert code == 3
    assert "1 masks" in out and "1 failed" in out
    assert "failed: " in err and "bad.jpg: not an image" in err


def test_a_missing_extra_is_one_line(cli: Cli, toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("gmtool_serving", "onnxruntime"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = cli(["evaluate", "--model", toy_model])
    assert code == 1
    expected = 'running a model needs onnxruntime, which is not installed: pip install "gmtool[serve]"'
    assert expected in one_line(err)


def test_debug_shows_the_traceback_of_an_expected_failure(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gmtool", "--debug", "export", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "nowhere does not exist" in done.stderr


def test_version(cli: Cli) -> None:
    from gmtool import __version__

    assert cli(["--version"]) == (0, f"gmtool {__version__}\n", "")
