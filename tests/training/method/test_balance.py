"""Rare classes that count more."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gmtool_training.data.batches import labeled_batches
from gmtool_training.loop.run import train
from gmtool_training.method.class_weights import class_weights
from gmtool_training.method.losses import cross_entropy
from gmtool_training.method.unlabeled import PseudoMask, Target, unlabeled_loss
from PIL import Image

from gmtool.classes import load_classes
from gmtool.config import MethodConfig
from gmtool.data.datasets import load_training_data
from gmtool.errors import DataError
from gmtool.nn.checkpoint import build_network
from gmtool.nn.model import normalize
from gmtool.settings import Settings, build_config


def test_weights_are_a_power_of_the_share_and_one_in_the_mean_over_pixels() -> None:
    pixels = np.array([900, 0, 90, 10])
    weights = class_weights(pixels, balance=0.5)
    assert (weights * torch.from_numpy(pixels)).sum() / 1000 == pytest.approx(1)
    assert weights[3] / weights[0] == pytest.approx((900 / 10) ** 0.5)
    assert weights[1] == weights[3], "a class without pixels weighs as the rarest one"
    torch.testing.assert_close(class_weights(pixels, balance=0), torch.ones(4))
    alike = class_weights(pixels, balance=1) * torch.from_numpy(pixels)
    torch.testing.assert_close(alike[[0, 2, 3]], torch.full((3,), 1000 / 3))


def test_without_labeled_pixels_there_is_nothing_to_weigh_by() -> None:
    with pytest.raises(DataError, match="no pixel of any class"):
        class_weights(np.zeros(4, dtype=np.int64), balance=0.5)


def test_each_pixel_of_a_labeled_image_weighs_as_its_class() -> None:
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    masks[0, 0] = 255
    weights = torch.tensor([0.5, 1.0, 4.0])
    each = (F.cross_entropy(logits, masks.clamp(max=2), reduction="none") * weights[masks.clamp(max=2)])[
        masks < 255
    ]
    loss = cross_entropy(logits, masks, ignore_index=255, class_weights=weights)
    torch.testing.assert_close(loss, each.mean())


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_each_pixel_of_an_unlabeled_image_weighs_as_its_likeliest_class(loss: str) -> None:
    method = MethodConfig(unlabeled_loss=loss, confidence=0.5)  # type: ignore[arg-type]

    def loss_of(logits: torch.Tensor, pseudo: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        return unlabeled_loss(logits, Target(logits, pseudo, None, PseudoMask(pseudo)), method, weights)

    logits, pseudo = torch.randn(1, 3, 4, 5), torch.randn(1, 3, 4, 5).mul(3).softmax(1)
    weights = torch.tensor([0.5, 1.0, 4.0])
    expected = sum(
        weights[pseudo.argmax(1)[0, y, x]]
        * loss_of(logits[..., y, None, x, None], pseudo[..., y, None, x, None], None)
        for y in range(4)
        for x in range(5)
    )
    torch.testing.assert_close(loss_of(logits, pseudo, weights), expected / 20)


def test_a_run_without_a_labeled_pixel_leaves_nothing(toy_settings: Settings, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(toy_settings["data.root"], root)
    for path in (root / "SegmentationClass").iterdir():
        mask = Image.open(path)
        mask.paste(255, (0, 0, *mask.size))
        mask.save(path)
    config = build_config(toy_settings, {"data.root": root, "method.balance": 0.5})
    with pytest.raises(DataError, match="no pixel of any class"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_weighs_by_the_labeled_masks(toy_settings: Settings, tmp_path: Path) -> None:
    options = {"method.name": "supervised", "method.balance": 0.5, "optim.iterations": 1, "run.log_every": 1}
    config = build_config(toy_settings, options)
    train(config, tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    logged = next(line["ce"] for line in lines if line["kind"] == "train")

    classes, data = load_classes(config.data.classes), load_training_data(config.data)
    paths = [sample.mask for sample in data.labeled.samples if isinstance(sample.mask, Path)]
    masks = np.concatenate([np.array(Image.open(path)).ravel() for path in paths])
    weights = class_weights(np.array([(masks == index).sum() for index in range(len(classes))]), balance=0.5)
    torch.manual_seed(config.run.seed)
    network = build_network(config.model, classes).train()
    batch = next(
        labeled_batches(data.labeled.samples, classes, config.data, seed=config.run.seed, pin_memory=False)
    )
    each = F.cross_entropy(
        network(normalize(batch.images)).logits, batch.masks.long(), weights, ignore_index=255, reduction="none"
    )
    assert logged == pytest.approx((each.sum() / (batch.masks != 255).sum()).item(), rel=1e-4)
