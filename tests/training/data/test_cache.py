import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gmtool_training.data import cache
from gmtool_training.data.batches import LabeledCrops, labeled_batches, unlabeled_batches, whole_images
from gmtool_training.data.cache import Readers, Shared, open_readers
from gmtool_training.data.readers import read_labeled
from PIL import Image
from torch.utils.data import DataLoader

from gmtool.classes import load_classes
from gmtool.config import TrainConfig
from gmtool.data.datasets import load_training_data
from gmtool.errors import DataError
from gmtool.images import read_image
from gmtool.settings import build_config


@pytest.fixture
def own_data(toy_data: Path, toy_config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A copy of the data with images of several sizes and one that lies on its side."""
    root = tmp_path / "data"
    shutil.copytree(toy_data, root)
    for number, size in ((1, (40, 56)), (9, (33, 47))):
        for path in root.rglob(f"toy_{number:05d}.*"):
            with Image.open(path) as image:
                resized = image.resize(size, Image.Resampling.NEAREST)
            exif = Image.Exif()
            exif[0x0112] = 6 if number == 9 else 1
            if path.suffix == ".jpg":
                resized.save(path, exif=exif)
            else:
                resized.save(path)
    return replace(toy_config, data=replace(toy_config.data, root=root, labeled=root / "splits/labeled.txt"))


def readers(config: TrainConfig, kind: str) -> Readers:
    settings = build_config({"data.root": ".", "data.cache": kind}).data
    asked = replace(config.data, cache=settings.cache)
    return open_readers(load_training_data(asked), load_classes(asked.classes), asked)


def tensors(config: TrainConfig, source: Readers, workers: int) -> Iterator[torch.Tensor]:
    """Some labeled and unlabeled batches, and all validation images."""
    settings = replace(config.data, workers=workers)
    data, classes = load_training_data(settings), load_classes(settings.classes)
    common: dict[str, Any] = {"seed": 5, "pin_memory": False}
    labeled = labeled_batches(data.labeled.samples, classes, settings, read=source.labeled, **common)
    unlabeled = unlabeled_batches(data.unlabeled.samples, settings, read=source.unlabeled, **common)
    with closing(labeled), closing(unlabeled):  # ends their processes
        for batch in (*islice(labeled, 5), *islice(unlabeled, 5)):
            yield from batch
    for pair in whole_images(data.val.samples, classes, settings, read=source.val):
        yield from pair


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_and_order_do_not_depend_on_the_cache(own_data: TrainConfig, workers: int) -> None:
    from_files = list(tensors(own_data, readers(own_data, "none"), 0))
    cached = list(tensors(own_data, readers(own_data, "ram"), workers))
    assert len(cached) == len(from_files) == 5 * 2 + 5 * 2 + 2 * 4
    for ours, expected in zip(cached, from_files, strict=True):
        assert torch.equal(ours, expected)


def test_after_filling_no_file_is_opened(own_data: TrainConfig) -> None:
    source = readers(own_data, "ram")
    expected = list(tensors(own_data, source, 0))
    data = load_training_data(own_data.data)
    for folder in ("JPEGImages", "SegmentationClass"):
        for path in (own_data.data.root / folder).iterdir():
            path.write_bytes(b"gone")
    classes = load_classes(own_data.data.classes)
    labeled = labeled_batches(
        data.labeled.samples, classes, own_data.data, seed=5, pin_memory=False, read=source.labeled
    )
    assert torch.equal(next(labeled).images, expected[0])


def test_each_sample_is_what_its_files_hold(own_data: TrainConfig) -> None:
    source, data = readers(own_data, "ram"), load_training_data(own_data.data)
    classes = load_classes(own_data.data.classes)
    for index, sample in enumerate(data.labeled.samples):
        for ours, expected in zip(
            source.labeled(index), read_labeled(sample, classes, own_data.data), strict=True
        ):
            np.testing.assert_array_equal(ours, expected)
    for index, sample in enumerate(data.unlabeled.samples):
        np.testing.assert_array_equal(source.unlabeled(index), read_image(sample.image_path))


def test_cached_pixels_cannot_be_written_to(toy_config: TrainConfig) -> None:
    image, mask = readers(toy_config, "ram").labeled(0)
    for array in (image, mask):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_no_mask_of_an_unlabeled_image_is_opened(own_data: TrainConfig) -> None:
    for sample in load_training_data(own_data.data).unlabeled.samples:
        (own_data.data.root / "SegmentationClass" / f"{sample.id}.png").unlink()
    assert readers(own_data, "ram").unlabeled(1).shape == (33, 47, 3)  # the one that lies on its side


def test_a_worker_is_sent_a_handle_and_not_the_pixels(toy_config: TrainConfig) -> None:
    reader = readers(toy_config, "ram").labeled
    shared: Shared = reader.__self__  # type: ignore[attr-defined]
    assert shared.pixels.is_shared()  # type: ignore[no-untyped-call]
    assert len(bytes(ForkingPickler.dumps(reader))) < 2000 < shared.pixels.nbytes


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_share_the_cache_however_they_start(toy_config: TrainConfig, context: str) -> None:
    crops = LabeledCrops(readers(toy_config, "ram").labeled, 255, toy_config.data, 0)
    keys = [(0, 1), (0, 0), (1, 3)]
    loader: DataLoader[Any] = DataLoader(
        crops, sampler=keys, batch_size=None, num_workers=1, multiprocessing_context=context
    )
    for key, (image, mask) in zip(keys, loader, strict=True):
        expected = crops[key]
        assert not isinstance(expected, DataError)
        assert torch.equal(image, expected[0])
        assert torch.equal(mask, expected[1])


def test_a_corrupt_image_is_named_in_one_line_before_training(own_data: TrainConfig) -> None:
    path = own_data.data.root / "JPEGImages" / "toy_00003.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"toy_00003\.jpg: damaged image"):
        readers(own_data, "ram")


@pytest.mark.parametrize("where", ["memory", "shared memory"])
def test_a_cache_that_does_not_fit_is_refused_before_decoding(
    toy_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "memory":
        monkeypatch.setattr(cache, "available_memory", lambda: 200_000)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 200_000))
    monkeypatch.setattr(cache, "_fill", None)
    pattern = rf"^data.cache=ram needs 0.000\d+ GiB of {where}.*; 0.000186 GiB are free, .* 90%: use --cache none"
    with pytest.raises(DataError, match=pattern) as error:
        readers(toy_config, "ram")
    assert "\n" not in str(error.value)
