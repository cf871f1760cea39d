"""What the probe leaves out where memory is small or labels are many."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gmtool_training.data.cache import Readers, open_readers
from gmtool_training.probe import collect, head, input_scale
from gmtool_training.probe.bank import Bank, views_of
from gmtool_training.probe.collect import affordable_pixels, bytes_of_pixel, labeled_bank
from gmtool_training.probe.input_scale import scores_at_scales
from gmtool_training.probe.kinds import Kind

from gmtool.classes import ClassSet, load_classes
from gmtool.config import TrainConfig
from gmtool.data.datasets import TrainingData, load_training_data
from gmtool.images import UInt8Array
from gmtool.nn.checkpoint import build_network
from gmtool.nn.model import GuidedMixNet
from gmtool.settings import Settings, build_config


class Parts(NamedTuple):
    """What features of labeled images are computed from."""

    network: GuidedMixNet
    config: TrainConfig
    data: TrainingData
    classes: ClassSet
    read: Readers


@pytest.fixture(scope="module")
def parts(toy_settings: Settings) -> Parts:
    changes = {"method.name": "probe", "model.decoder": "pyramid", "model.output_stride": 16}
    config = build_config(toy_settings, changes)
    data, classes = load_training_data(config.data), load_classes(config.data.classes)
    torch.manual_seed(0)
    network = build_network(config.model, classes).eval()
    return Parts(network, config, data, classes, open_readers(data, classes, config.data))


def test_fewer_pixels_are_taken_where_their_features_do_not_fit(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, config, data, classes, read = parts
    views, count = views_of((1.0,)), len(data.labeled.samples)

    def bank(pixels: int) -> int:
        random = np.random.default_rng(0)
        found = labeled_bank(network, data, classes, read, views, pixels=pixels, config=config, random=random)
        assert found.bytes == len(found.labels) * len(views) * bytes_of_pixel(network)
        return found.bytes

    whole = bank(100)
    assert "do not fit" not in capsys.readouterr().err
    # Memory of which a quarter is what 20 pixels of each image take
    room = 20 * count * len(views) * bytes_of_pixel(network)
    monkeypatch.setattr(collect, "available_memory", lambda: 4 * room)
    assert affordable_pixels(network, count, len(views), 100) == 20
    assert bank(100) == pytest.approx(whole / 5, rel=0.05)
    said = "20 pixels of a labeled image instead of 100: features of more do not fit into memory"
    assert said in capsys.readouterr().err
    monkeypatch.setattr(collect, "available_memory", lambda: 0)
    assert affordable_pixels(network, count, len(views), 100) == 1


@pytest.mark.parametrize(("most", "expected"), [(60, None), (4, 4)])
def test_of_many_labeled_images_some_choose_the_input_scale(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, most: int, expected: int | None
) -> None:
    network, config, data, classes, read = parts
    monkeypatch.setattr(input_scale, "SCALE_IMAGES", most)
    seen: dict[float, set[int]] = {0.5: set(), 1.0: set()}

    def labeled(index: int) -> tuple[UInt8Array, UInt8Array]:
        seen[network.input_scale].add(index)
        return read.labeled(index)

    scores_at_scales(network, tuple(seen), config, data, classes, Readers(labeled, read.unlabeled, read.val))
    assert seen[0.5] == seen[1.0], "the same images at each scale"
    assert len(seen[0.5]) == (expected or len(data.labeled.samples))


def test_input_scales_are_compared_on_the_same_pixels_while_memory_shrinks(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, config, data, classes, read = parts
    room = 4 * 40 * len(data.labeled.samples) * bytes_of_pixel(network)  # of which a quarter takes 40 pixels
    free = iter([room, room, room - room // 4])
    monkeypatch.setattr(collect, "available_memory", lambda: next(free))
    judged, linear_kind = list[Bank](), input_scale._linear_kind

    def keep(bank: Bank, *how: Any) -> Kind:
        judged.append(bank)
        return linear_kind(bank, *how)

    monkeypatch.setattr(input_scale, "_linear_kind", keep)
    scores_at_scales(network, (0.5, 1.0), config, data, classes, read)
    first, second = judged
    assert first.labels.equal(second.labels) and first.images.equal(second.images)
    assert 0 < len(first.labels) <= 21 * len(data.labeled.samples)


@pytest.mark.parametrize(("mib", "rows"), [(1, 5_000), (1024, 26_843), (100_000, 100_000)])
def test_a_linear_fit_takes_what_memory_there_is(mib: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of it, for twice the rows of 1250 features in four bytes."""
    monkeypatch.setattr(head, "available_memory", lambda: mib << 20)
    assert head.affordable_rows(1250) == rows


def test_a_linear_head_holds_no_rows() -> None:
    """The graph of its last gradient held them: nine heads took 5 GB."""
    features = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).half()
    fitted = head.fit_linear([head.Rows((features,), torch.eye(3)[torch.arange(300) % 3])])
    held = [value for value in fitted.layers.parameters() if value.grad is not None or value.grad_fn is not None]
    assert not held
