"""Encoders of timm keep the contract of our own: strides, weights, training, export, prediction."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from gmtool_export.run import ExportOptions, export_run
from gmtool_training.loop.run import train

from gmtool.errors import CheckpointError, ConfigError
from gmtool.nn.checkpoint import load_network
from gmtool.nn.timm_encoder import TimmEncoder
from gmtool.nn.weights import load_encoder_weights
from gmtool.settings import Settings, build_config

NAMES = ["timm:test_convnext", "timm:test_efficientnet", "timm:resnet10t"]
"""Of three families; timm makes the first two, as small as they can be, for tests."""


@pytest.mark.parametrize("name", NAMES)
def test_weights_in_timms_own_names_fit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = timm.create_model(name.removeprefix("timm:"), pretrained=False)
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(2)
    encoder = TimmEncoder(name, output_stride=8)
    line = load_encoder_weights(encoder, name, str(tmp_path / "weights.safetensors"))
    loaded, wanted = line.split(": ")[1].split(" tensors")[0].split(" of ")
    assert loaded == wanted, line
    published = list(whole.state_dict().values())
    for key, value in encoder.state_dict().items():
        assert any(torch.equal(value, other) for other in published if other.shape == value.shape), key


def test_images_arrive_as_the_network_was_trained_with_them() -> None:
    name = next(
        model
        for model in ("mobilenetv3_large_100.miil_in21k", "resnetv2_50", "mixnet_s", "efficientnet_lite0")
        if timm.get_pretrained_cfg_value(model, "mean") == (0.5, 0.5, 0.5)
    )
    encoder = TimmEncoder(f"timm:{name}", output_stride=8).eval()
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        ours = encoder((image - mean) / std)[-1]
        expected = encoder.model((image - 0.5) / 0.5)[-1]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:convnxt_atto", "did you mean timm:convnext_atto"),
        ("timm:hiera_tiny_224", "timm gives no feature maps that fit: "),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        TimmEncoder(name, output_stride=8)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def offline(*arguments: Any, **keywords: Any) -> torch.nn.Module:
        if keywords["pretrained"]:
            raise ConnectionError("no network")
        return real(*arguments, **keywords)

    encoder = TimmEncoder(NAMES[0], output_stride=8)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"could not be downloaded \(no network\): give a file"):
        load_encoder_weights(encoder, NAMES[0], "imagenet")


def test_it_trains_and_exports_and_agrees(toy_settings: Settings, toy_data: Path, tmp_path: Path) -> None:
    changes: Settings = {
        "model.encoder": NAMES[1],
        "model.decoder": "pyramid",
        "optim.iterations": 10,
        "optim.lr": 0.01,
        "run.validations": 1,
        "run.activation_checkpointing": True,
    }
    train(build_config(toy_settings, changes), tmp_path / "run")
    result = export_run(
        tmp_path / "run",
        name="last",
        options=ExportOptions(
            outputs=("mask", "embedding"), image_dir=toy_data / "JPEGImages", allow_few_classes=True
        ),
    )
    assert min(row.agreement for row in result.parity) >= 0.999
    assert result.spec.encoder == NAMES[1]


def test_a_frozen_encoder_stays_as_it_was(toy_settings: Settings, tmp_path: Path) -> None:
    changes = {"optim.freeze_encoder": True, "optim.iterations": 3, "run.validations": 1}
    for seed_run, iterations in (("short", 1), ("long", 3)):
        train(build_config(toy_settings, changes, {"optim.iterations": iterations}), tmp_path / seed_run)
    short, long = (load_network(tmp_path / name, "last")[0] for name in ("short", "long"))
    for (key, first), second in zip(
        short.encoder.state_dict().items(), long.encoder.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second), key
    assert not torch.equal(short.classifier.weight, long.classifier.weight)
