import shutil
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from gmtool_training.data.batch_order import EndlessBatches
from gmtool_training.data.batches import labeled_batches, unlabeled_batches, whole_images

from gmtool.classes import load_classes
from gmtool.config import TrainConfig
from gmtool.data.datasets import load_training_data
from gmtool.errors import DataError


def batches(config: TrainConfig, count: int, **changes: object) -> list[torch.Tensor]:
    """Every tensor of the first labeled and unlabeled batches."""
    settings = replace(config.data, **changes)  # type: ignore[arg-type]
    data, classes = load_training_data(settings), load_classes(settings.classes)
    labeled = labeled_batches(data.labeled.samples, classes, settings, seed=5, pin_memory=False)
    unlabeled = unlabeled_batches(data.unlabeled.samples, settings, seed=5, pin_memory=False)
    with closing(labeled), closing(unlabeled):  # ends their processes
        return [tensor for part in (labeled, unlabeled) for batch in islice(part, count) for tensor in batch]


def test_batches_have_the_promised_shapes(toy_config: TrainConfig) -> None:
    images, masks, unlabeled, inside = batches(toy_config, 1)
    assert images.shape == unlabeled.shape == (4, 3, 32, 32)
    assert masks.shape == (4, 32, 32)
    assert images.dtype == masks.dtype == unlabeled.dtype == torch.uint8
    assert set(masks.flatten().tolist()) <= {0, 1, 2, 3, 4, 5, 255}
    assert inside.shape == (4, 32, 32)
    assert inside.dtype == torch.bool


def test_pixels_and_order_do_not_depend_on_the_number_of_workers(toy_config: TrainConfig) -> None:
    for alone, shared in zip(batches(toy_config, 4), batches(toy_config, 4, workers=2), strict=True):
        assert torch.equal(alone, shared)


def test_loading_leaves_the_global_random_state_alone(toy_config: TrainConfig) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(toy_config, 2)
    assert torch.equal(torch.get_rng_state(), before)


def drawn(batches: EndlessBatches, count: int) -> list[tuple[int, int]]:
    return [key for batch in islice(batches, count) for key in batch]


def test_the_shares_of_several_processes_make_up_the_batches_of_one() -> None:
    whole = list(islice(EndlessBatches(7, [3], batch=4, start=2), 5))
    shares = [islice(EndlessBatches(7, [3], batch=4, start=2, share=(index, 2)), 5) for index in (0, 1)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole
    assert list(islice(EndlessBatches(7, [3], batch=4), 7))[2:] == whole


def test_each_epoch_is_a_permutation_and_the_two_parts_are_drawn_independently() -> None:
    keys = drawn(EndlessBatches(8, [0, 1], batch=3), 8)
    for epoch in range(3):
        assert sorted(index for e, index in keys if e == epoch) == list(range(8))
    orders = [[index for e, index in keys if e == epoch] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    other = [index for _, index in drawn(EndlessBatches(8, [0, 2], batch=3), 8)]
    pairs = [set(zip([i for _, i in keys][s : s + 8], other[s : s + 8], strict=True)) for s in (0, 8, 16)]
    assert len(pairs[0] & pairs[1]) < 8


def test_an_image_is_augmented_anew_in_every_epoch(toy_config: TrainConfig) -> None:
    first, second = batches(toy_config, 6)[0:12:2][0], batches(toy_config, 6)[0:12:2][2]
    assert not torch.equal(first, second)


@pytest.fixture
def broken_data(toy_data: Path, toy_config: TrainConfig, tmp_path: Path) -> TrainConfig:
    root = tmp_path / "data"
    shutil.copytree(toy_data, root)
    return replace(toy_config, data=replace(toy_config.data, root=root, labeled=root / "splits/labeled.txt"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_training_in_one_line_that_names_it(broken_data: TrainConfig, workers: int) -> None:
    path = broken_data.data.root / "JPEGImages" / "toy_00003.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"toy_00003\.jpg: damaged image") as error:
        batches(broken_data, 8, workers=workers)
    assert "\n" not in str(error.value)


def test_no_code_path_opens_the_mask_of_an_unlabeled_image(broken_data: TrainConfig) -> None:
    data = load_training_data(broken_data.data)
    masks = broken_data.data.root / "SegmentationClass"
    for sample in data.unlabeled.samples:
        (masks / f"{sample.id}.png").unlink()
    loaded = unlabeled_batches(data.unlabeled.samples, broken_data.data, seed=0, pin_memory=False)
    assert len(list(islice(loaded, 6))) == 6


def test_validation_images_come_whole_and_in_order(toy_config: TrainConfig) -> None:
    data, classes = load_training_data(toy_config.data), load_classes(toy_config.data.classes)
    items = list(whole_images(data.val.samples, classes, toy_config.data))
    assert len(items) == 4
    assert all(image.shape == (3, 48, 64) and mask.shape == (48, 64) for image, mask in items)
