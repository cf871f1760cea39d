"""`data.exif` and `data.bits` of a data set, and `predict --exif` and `--bits`, give a model the same images."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, Cli
from gmtool_serving.inputs.decode import Decoded, DecodeOptions, EncodedImage, decode
from gmtool_serving.pipeline.decoder_process import DecodingProcess
from gmtool_serving.pipeline.run import PredictOptions
from gmtool_training.data.cache import open_readers
from gmtool_training.loop.prepare import checked_data
from PIL import Image

from gmtool.classes import load_classes
from gmtool.config import DataConfig
from gmtool.data.datasets import load_split
from gmtool.data.ground_truth import read_truth
from gmtool.errors import MaskSizeError
from gmtool.settings import build_config

CLASSES = {"names": ["background", "disc"]}


def write_data(root: Path, orientation: int, *, size: tuple[int, int] = (40, 48)) -> Path:
    """Write photos that are stored in another orientation, with masks as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for place, name in enumerate(("train/a", "train/b", "train/c", "val/v")):
        for kind in ("images", "masks"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        labels = np.zeros(size, np.uint8)
        labels[:10, : 10 + place] = 1
        Image.fromarray(labels * 200).convert("RGB").save(root / f"images/{name}.jpg", exif=exif, quality=95)
        Image.fromarray(labels).save(root / f"masks/{name}.png")
    (root / "labeled.txt").write_text("a\nb\n")
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


def settings_of(root: Path, **data: object) -> dict[str, object]:
    return {
        **SMALL,
        "data.root": root,
        "data.layout": "folder",
        "data.classes": str(root / "classes.json"),
        "data.labeled": root / "labeled.txt",
        **{f"data.{name}": value for name, value in data.items()},
    }


def test_a_mask_of_swapped_sides_names_the_orientation_and_the_remedy_works(tmp_path: Path) -> None:
    root = write_data(tmp_path, 6)
    classes = load_classes(str(root / "classes.json"))
    (sample,) = load_split(DataConfig(root, "folder"), "val", None).samples
    with pytest.raises(MaskSizeError, match=r"is 48x40, but its image is 40x48: .*--set data\.exif=ignore"):
        read_truth(sample, classes, values="index", size=sample.image_size())
    config = build_config(settings_of(root, exif="ignore"))
    checked_data(config, classes, check=True)


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_training_reads_images_as_they_are_stored_on_request(tmp_path: Path, orientation: int, cache: str) -> None:
    root = write_data(tmp_path, orientation)
    config = build_config(settings_of(root, exif="ignore", cache=cache))
    classes = load_classes(config.data.classes)
    data = checked_data(config, classes, check=True)
    read = open_readers(data, classes, config.data)
    for image, mask in (read.labeled(0), read.labeled(1), read.val(0)):
        assert (image[:, :, 0] > 100).mean() > 0
        assert ((image[:, :, 0] > 100) == (mask == 1)).mean() > 0.95
    assert read.unlabeled(0).shape == (40, 48, 3)
    assert read.unlabeled(0)[:8, :8].min() > 150


def test_images_that_their_mask_fits_either_way_are_said_and_others_are_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, orientation, size, said in (
        ("upside down", 3, (40, 48), True),
        ("square", 6, (48, 48), True),
        ("as stored", 1, (40, 48), False),
    ):
        root = write_data(tmp_path / name, orientation, size=size)
        for exif in ("apply", "ignore"):
            config = build_config(settings_of(root, exif=exif))
            checked_data(config, load_classes(config.data.classes), check=True)
            err = capfd.readouterr().err
            assert ("turned or mirrored by their EXIF orientation" in err) == (said and exif == "apply"), name
            assert ("--set data.exif=ignore" in err) == (said and exif == "apply")


@pytest.fixture
def child() -> Iterator[DecodingProcess]:
    process = DecodingProcess(DecodeOptions(bits=12))
    yield process
    process.close()
    process.join()


def test_images_of_12_bits_reach_training_and_prediction_alike(
    tmp_path: Path, child: DecodingProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_data(tmp_path, 1)
    grey = np.linspace(0, 4095, 40 * 48).reshape(40, 48).astype(np.uint16)
    for name in ("train/a", "train/c", "val/v"):
        (root / f"images/{name}.jpg").unlink()
        Image.fromarray(grey).save(root / f"images/{name}.png")
    expected = np.repeat(np.rint(grey / 4095 * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    config = build_config(settings_of(root, bits=12))
    classes = load_classes(config.data.classes)
    data = checked_data(config, classes, check=True)
    assert "dark" not in capfd.readouterr().err
    read = open_readers(data, classes, config.data)
    for image in (read.labeled(0)[0], read.unlabeled(0), read.val(0)[0]):
        np.testing.assert_array_equal(image, expected)
    path = root / "images/val/v.png"
    for decoded in (decode(path, None, DecodeOptions(bits=12)), *child.decode([EncodedImage(path)])):
        assert isinstance(decoded, Decoded) and decoded.warning is None
        np.testing.assert_array_equal(decoded.pixels, expected)
    warned = decode(path, None, DecodeOptions())
    assert isinstance(warned, Decoded) and warned.warning is not None and "--bits 12" in warned.warning


def test_the_bits_are_a_condition_of_resuming() -> None:
    default, other = (PredictOptions(decode=DecodeOptions(bits=bits)).conditions("0" * 64) for bits in (16, 12))
    assert (default.options["bits"], other.options["bits"]) == (16, 12)


def test_predict_takes_bits(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli(["predict", "x.png", "--out", tmp_path / "out", "--bits", "7"])
    assert code == 2 and "--bits" in err
    (tmp_path / "none").mkdir()
    code, _, err = cli(["predict", tmp_path / "none", "--out", tmp_path / "out", "--bits", "12"])
    assert code == 1 and "no images in" in err
