"""Options that contradict each other, or that nothing would look at: exit code 2, one line, before any work."""

from pathlib import Path

import pytest
from conftest import Cli

from gmtool.data.toy import ToyConfig, generate_toy

MASKS = "evaluate --predictions {masks} --ground-truth {masks} --classes {classes}"
REPORT = "evaluate --report report.json"
PREDICT = "predict {images} --out out --model {model}"
TRT = "export {run} --trt --min-shape 1x32x32 --opt-shape 1x32x32 --max-shape 1x64x64 --trt-runtime tensorrt_rtx"
COMMANDS = {
    f"{PREDICT} --mask-values raw": "--mask-values needs --ground-truth DIR",
    f"{PREDICT} --overlap 8": "--overlap needs --tile",
    f"{PREDICT} --ray-actors 2": "--ray-actors needs --ray",
    f"{PREDICT} --ray local --shard 1/2": "--shard means nothing with --ray",
    f"{PREDICT} --format coco --ground-truth {{masks}}": "--ground-truth scores class indices: add --format voc",
    f"{MASKS} --data {{data}}": "either --ground-truth DIR or --data DIR",
    f"{MASKS} --model {{model}}": "--model scores a model, --predictions masks",
    f"{MASKS} --flip": "--flip scores a model",
    f"{MASKS} --device cpu": "--device scores a model",
    f"{MASKS} --threads 1": "--threads scores a model",
    f"{MASKS} --trust": "--trust scores a model",
    f"{MASKS} --layout voc": "--layout does nothing without --data",
    f"{MASKS} --mask-dir x": "--mask-dir does nothing without --data",
    f"{MASKS} --set data.bits=12": "--set does nothing without --data",
    f"{MASKS} --official-json x.json": "--official-json needs the 19 classes of Cityscapes",
    "evaluate --model {model} --stride 8x8": "--stride needs --sliding",
    "evaluate --model {model} --classes {classes}": "--classes is for --predictions",
    "evaluate --model {model} --images {images}": "--images needs --ground-truth DIR",
    "evaluate --model {model} --images {images} --ground-truth {masks} --data {data}": "--data is of a data set",
    "evaluate --model {model} --images {images} --ground-truth {masks} --classes voc": "--classes is for --pred",
    f"{REPORT} --model {{model}}": "--model scores anew",
    f"{REPORT} --classes voc": "--classes scores anew",
    f"{REPORT} --images {{images}}": "--images scores anew",
    f"{REPORT} --mask-dir x": "--mask-dir scores anew",
    f"{REPORT} --mask-values raw": "--mask-values scores anew",
    f"{REPORT} --device cpu": "--device scores anew",
    f"{REPORT} --threads 1": "--threads scores anew",
    f"{REPORT} --trust": "--trust scores anew",
    "benchmark {model} --ground-truth {masks}": "give both, or neither",
    "benchmark {model} --images {images} --mask-values raw": "--mask-values needs --ground-truth",
    "train": "train what?",
    "train voc": "no data set folder: give --data DIR",
    "train voc --resume {run}": "voc begins a new run",
    "train --resume {run} --recipe probe": "--recipe begins a new run",
    "train toy --download": "--download fetches voc and voc-aug",
    "train toy --minutes 3": "--minutes is for",
    "export {run} --symmetric": "--symmetric does nothing without --precision int8",
    "export {run} --no-parity --images {images}": "--images does nothing without --parity",
    "export {run} --no-parity --score-images 4": "--score-images does nothing without --parity",
    "export {run} --no-parity --max-miou-drop 0": "--max-miou-drop does nothing without --parity",
    "export {run} --max-miou-drop -1": "--max-miou-drop",
    "export {run} --workspace 5": "--workspace does nothing without --trt",
    "export {run} --max-batch 3": "--max-batch does nothing without --triton",
    "export {run} --triton out --triton-plan x.plan": "--triton-plan does nothing without --trt",
    "export {run} --triton out --triton-name a/b": "--triton-name a/b: expected letters",
    f"{TRT} --hardware-compatible": "--hardware-compatible: TensorRT-RTX has no such option",
    f"{TRT} --compute-capability 1.1": "--compute-capability 1.1: TensorRT-RTX",
    "data split toy --data {data} --out out": "--count, or their share with --fraction",
    "data split toy --data {data} --out out --count 2 --fraction 1/8": "--count, or their share with --fraction",
    "data split toy --data {data} --out out --count 99": "99 labeled images of 4: expected 1 to 3",
    "data split toy --data {data} --out out --count 2 --group [": "--group [: not a regular expression",
    "data check voc": "no data set folder: give --data DIR",
    "demo --iterations 0": "--iterations",
}


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small") / "data"
    generate_toy(root, ToyConfig(labeled=2, unlabeled=2, val=2))
    return root


@pytest.mark.parametrize("line", COMMANDS)
def test_contradicting_options_end_with_2_and_one_line(
    line: str,
    cli: Cli,
    small_data: Path,
    toy_run: Path,
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "trt-runtime" in line:
        pytest.importorskip("tensorrt_rtx")
    code, out, err = cli(
        line.format(
            run=toy_run,
            model=toy_model,
            data=small_data,
            images=small_data / "JPEGImages",
            masks=small_data / "SegmentationClass",
            classes=small_data / "classes.json",
        ).split()
    )
    assert code == 2, err
    assert COMMANDS[line] in err.splitlines()[-1]
    assert out == ""
    assert not list(tmp_path.iterdir())
