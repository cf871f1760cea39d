"""Python API: the functions of `gmtool`, and the examples of docs/python.md."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from conftest import SMALL, Cli
from gmtool_serving.pipeline.job import Observer
from PIL import Image
from test_readme import my_data, read

import gmtool
from gmtool.errors import ArtifactError, BackendMemoryError, ConfigError, ImageError
from gmtool.report.report import format_json
from gmtool.settings import Settings


@pytest.fixture(scope="module")
def model(toy_model: Path) -> gmtool.Model:
    return gmtool.load(toy_model, device="cpu", threads=1)


@pytest.fixture(scope="module")
def exported(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models of the toy run with confidence and with logits."""
    outputs: tuple[Literal["mask+confidence", "logits"], ...] = ("mask+confidence", "logits")
    runs = {name: shutil.copytree(toy_run, tmp_path_factory.mktemp("run") / name) for name in outputs}
    return {name: gmtool.export(run, output=name, parity=False) for name, run in runs.items()}


def first_image(data: Path) -> Path:
    return sorted((data / "JPEGImages").iterdir())[0]


def test_a_path_a_picture_and_an_array_have_the_mask_that_the_command_writes(
    model: gmtool.Model, toy_model: Path, toy_data: Path, tmp_path: Path, cli: Cli
) -> None:
    path = first_image(toy_data)
    code, _, err = cli(["predict", path, "--out", tmp_path / "m", "--model", toy_model, "--device", "cpu"])
    assert code == 0, err
    expected = tmp_path / "m" / f"{path.stem}.png"
    picture = Image.open(path)
    results = [model.predict(path), model.predict(str(path)), model.predict(picture)]
    results += [model.predict(np.asarray(picture.convert("RGB")))]
    for result in results:
        assert result.mask.shape == (48, 64) and result.mask.dtype == np.uint8
        assert (result.mask == np.asarray(Image.open(expected))).all()
        assert result.confidence is None
    assert results[0].classes == model.classes == model.spec.classes
    assert results[0].save(tmp_path / "saved.png").read_bytes() == expected.read_bytes()
    assert model.path == toy_model


def test_a_batch_of_several_sizes_keeps_its_order(model: gmtool.Model, toy_data: Path) -> None:
    paths = sorted((toy_data / "JPEGImages").iterdir())[:5]
    small = [Image.open(path).resize((40, 32)) for path in paths]
    mixed: list[Any] = [image for pair in zip(paths, small, strict=True) for image in pair]
    results = model.predict(mixed, batch=2)
    assert [result.mask.shape for result in results] == [(48, 64), (32, 40)] * 5
    for image, result in zip(mixed, results, strict=True):
        assert (model.predict(image).mask == result.mask).all()
    assert model.predict([]) == []


def test_images_are_decoded_as_files_are(model: gmtool.Model, toy_data: Path, tmp_path: Path) -> None:
    picture = Image.open(first_image(toy_data))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    assert model.predict(turned).mask.shape == model.predict(tmp_path / "turned.png").mask.shape == (64, 48)
    assert model.predict(turned, exif="ignore").mask.shape == (48, 64)
    assert turned.getexif()[0x0112] == 6, "the caller's image is left as it is"
    deep = Image.fromarray(np.full((32, 32), 4000, dtype=np.uint16))
    assert model.predict(deep, bits=12).image.max() == 249
    assert "--bits 12" in model.predict(deep).notes[0]


@pytest.mark.parametrize(
    ("image", "keywords", "code", "message"),
    [
        ("nothing.png", {}, "unreadable", "nothing.png: cannot be read"),
        (Image.new("F", (32, 32)), {}, "unsupported", "image 0: pixels of mode F"),
        (Image.new("RGB", (32, 32)), {"max_pixels": 1000}, "too_large", "32x32 pixels; 1 to 1000 are taken"),
        (np.zeros((32, 32), np.uint8), {}, "unsupported", r"uint8 \(32, 32\): expected a path, a PIL image"),
        (np.zeros((32, 32, 3), np.float32), {}, "unsupported", "image 0: float32"),
        (np.zeros((2, 32, 32, 3), np.uint8), {}, "unsupported", "a batch is a list of them"),
        (np.zeros((64, 64, 3), np.uint8), {"max_pixels": 1000}, "too_large", "64x64 pixels"),
        ([None], {}, "unsupported", "image 0: NoneType"),
    ],
)
def test_an_unusable_image_is_an_error_in_one_line(
    model: gmtool.Model, image: Any, keywords: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        model.predict(image, **keywords)
    assert caught.value.code == code and "\n" not in str(caught.value)


def test_a_runtime_that_fails_raises_its_own_kind_of_error(
    model: gmtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: object) -> None:
        raise BackendMemoryError("no room")

    monkeypatch.setattr(model.backend, "predict", fail)
    with pytest.raises(BackendMemoryError, match="image 0: no room"):
        model.predict(np.zeros((32, 32, 3), np.uint8))


def test_usage_is_checked_before_the_image(model: gmtool.Model) -> None:
    with pytest.raises(gmtool.UsageError, match="--overlap needs --tile"):
        model.predict("nothing.png", overlap=8)
    with pytest.raises(gmtool.UsageError, match="--tile 0x5: expected HEIGHTxWIDTH"):
        model.predict("nothing.png", tile=(0, 5))
    with pytest.raises(ConfigError, match="export it with gmtool export --output logits"):
        model.predict("nothing.png", tile="32")
    with pytest.raises(ArtifactError, match="no such file"):
        gmtool.load("nothing.onnx")


def test_results_have_confidence_overlays_and_other_formats(
    exported: dict[str, Any], toy_data: Path, tmp_path: Path
) -> None:
    result = gmtool.load(exported["mask+confidence"], device="cpu", threads=1).predict(first_image(toy_data))
    assert result.confidence is not None and result.confidence.shape == (48, 64) and result.confidence.max() > 85
    overlay = result.overlay()
    assert overlay.mode == "RGB" and overlay.height > 48
    with np.load(result.save(tmp_path / "x.npz", format="npz")) as arrays:
        assert (arrays["mask"] == result.mask).all() and (arrays["confidence"] == result.confidence).all()
    with pytest.raises(ConfigError, match="voc-submission is for the 21 classes"):
        result.save(tmp_path / "x.png", format="voc-submission")
    assert not (tmp_path / "x.png").exists()


def test_tiles_and_views_work_with_logits(exported: dict[str, Any], toy_data: Path) -> None:
    model = gmtool.load(exported["logits"], device="cpu", threads=1)
    whole, tiled = (model.predict(first_image(toy_data), tile=tile) for tile in (None, "32x32"))
    assert tiled.mask.shape == whole.mask.shape and (tiled.mask == whole.mask).mean() > 0.5
    report = gmtool.evaluate(model, data=toy_data, layout="voc", sliding=(32, 32), scales=(1.0, 1.5), flip=True)
    assert report.protocol.flip and report.protocol.scales == (1.0, 1.5)


def test_training_exporting_predicting_and_scoring_pass_results_on(
    toy_settings: Settings, toy_data: Path, tmp_path: Path, cli: Cli
) -> None:
    settings = {**toy_settings, "optim.iterations": 2, "data.layout": "voc", "model.decoder": "pyramid"}
    run = gmtool.train("folder", settings=settings, out=tmp_path / "r")
    assert run.run_dir == tmp_path / "r" and Path(run) == run.run_dir
    assert gmtool.resume(run, iterations=3, settings=["run.log_every=1"]).report.num_images > 0
    exported = gmtool.export(run, allow_few_classes=True)
    assert Path(exported) == exported.path == tmp_path / "r/export/model_fp32.onnx"
    assert gmtool.load(run).path == exported.path
    images, truth = toy_data / "JPEGImages", toy_data / "SegmentationClass"
    seen = []

    class Watching(Observer):
        def tell(self, line: str) -> None:
            seen.append(line)

    how: dict[str, Any] = {"device": "cpu", "workers": 0, "observer": Watching()}
    summary = gmtool.predict(images, out=tmp_path / "m", model=exported, ground_truth=truth, **how)
    assert (summary.ok, summary.failed, summary.usable) == (24, 0, 24)
    assert seen == [f"model {exported.path}, {summary.details['backend']}"]
    scored = gmtool.evaluate(predictions=tmp_path / "m", ground_truth=truth, classes=toy_data / "classes.json")
    assert summary.score is not None and summary.score.miou == scored.miou
    code, out, err = cli(["evaluate", "--model", exported.path, "--json", "--device", "cpu"])
    assert code == 0, err
    report = gmtool.evaluate(exported, device="cpu", out=tmp_path / "report")
    assert json.loads(format_json(report.to_dict())) == json.loads(out)
    assert (tmp_path / "report/report.html").is_file()


def test_failed_images_are_counted_and_a_file_of_the_whole_that_fails_is_raised(
    model: gmtool.Model, toy_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/bad.png").write_bytes(b"x")
    (tmp_path / "images/good.jpg").write_bytes(first_image(toy_data).read_bytes())
    images, out = tmp_path / "images", tmp_path / "m"
    summary = gmtool.predict(images, out=out, model=model, format=["voc", "overlay"], workers=0)
    assert (summary.inputs, summary.ok, summary.failed) == (2, 1, 1)
    assert summary.to_dict()["failures"] == {"not_an_image": 1}
    with pytest.raises(gmtool.UnfinishedError, match="no such folder") as caught:
        how: dict[str, Any] = {"format": "voc,overlay", "resume": True, "workers": 0}
        gmtool.predict([images], out=out, model=model, ground_truth=tmp_path / "none", **how)
    assert caught.value.summary.usable == 1


@pytest.mark.parametrize(
    ("function", "keywords", "message"),
    [
        ("export", {"symmetric": True}, "--symmetric does nothing without --precision int8"),
        ("export", {"parity": False, "images": "x"}, "--images does nothing without --parity"),
        ("export", {"triton": gmtool.TritonTarget("x", warmup=("big",))}, "--warmup big: expected HEIGHTxWIDTH"),
        ("export", {"checkpoint": "last"}, None),
        ("evaluate", {"predictions": "x", "flip": True}, "--flip scores a model, --predictions masks"),
        ("evaluate", {"classes": "voc"}, "--classes is for --predictions"),
        ("evaluate", {"settings": {"optim.lr": 1}}, "--set optim.lr: a model is evaluated as it is"),
        ("predict", {"ray_cpus": 2}, "--ray-cpus needs --ray"),
        ("predict", {"format": "vok"}, "unknown format vok; did you mean voc?"),
        ("predict", {"model": "s3://bucket/m.onnx"}, "buckets are read with --ray"),
        ("train", {"kind": "folder", "download": True}, "--download fetches voc and voc-aug, not folder"),
        ("train", {"kind": "folder", "recipe": "plsu", "data": "x"}, "unknown recipe plsu; did you mean plus?"),
        ("train", {"kind": "folder", "settings": ["optim.lr"]}, "--set optim.lr: expected name=value"),
    ],
)
def test_contradictions_are_usage_errors(
    function: str, keywords: dict[str, Any], message: str | None, toy_run: Path, tmp_path: Path
) -> None:
    fixed: dict[str, dict[str, Any]] = {
        "export": {"run": toy_run},
        "predict": {"inputs": "images", "out": tmp_path / "m"},
        "train": {"out": tmp_path / "run"},
        "evaluate": {},
    }
    if message is None:
        fixed["export"]["run"] = toy_run / "checkpoints/best.json"
        message = "is a checkpoint itself: leave --checkpoint out"
    with pytest.raises(gmtool.UsageError, match=re.escape(message)) as caught:
        getattr(gmtool, function)(**fixed[function], **keywords)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "m").exists() and not (tmp_path / "run").exists()


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training functions take seconds, offline, and exporting accept what they trained."""
    train, resume, export = gmtool.train, gmtool.resume, gmtool.export
    batches = {"data.labeled_batch": 2, "data.unlabeled_batch": 2}
    short = {
        **SMALL,
        **batches,
        "optim.iterations": 2,
        "model.decoder": "pyramid",
        "probe.steps": 10,
        "probe.rounds": 1,
        "probe.head": "hidden",
    }

    def short_train(*args: Any, settings: Any = (), **keywords: Any) -> Any:
        return train(*args, settings={**short, **dict(settings)}, **keywords)

    def short_export(*args: Any, **keywords: Any) -> Any:
        return export(*args, allow_few_classes=True, **keywords)

    monkeypatch.setattr(gmtool, "train", short_train, raising=False)
    monkeypatch.setattr(gmtool, "resume", lambda run, **_: resume(run, iterations=3), raising=False)
    monkeypatch.setattr(gmtool, "export", short_export, raising=False)


def test_the_examples_of_the_page_work_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    my_data(tmp_path / "my-data")
    shorten(monkeypatch)
    blocks = re.findall(r"```python\n(.*?)```", read("docs/python.md"), flags=re.DOTALL)
    assert len(blocks) >= 7
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "runs/mine/export/model_fp32_confidence.onnx"
    assert "(48, 64) uint8" in out and "--overlap needs --tile HEIGHTxWIDTH" in out
    assert (tmp_path / "overlay.png").is_file() and (tmp_path / "mask.png").is_file()
