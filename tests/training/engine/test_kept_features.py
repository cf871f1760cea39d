"""Features of a frozen encoder that are kept: the same training in fewer passes through the encoder."""

import pytest
import torch
from gmtool_training.data.batches import labeled_batches
from gmtool_training.engine import kept_features
from gmtool_training.engine.kept_features import crop_bytes, keep_features, require_room
from gmtool_training.engine.machine import Machine
from gmtool_training.method.batchnorm import freeze
from torch import Tensor

from gmtool.classes import load_classes
from gmtool.config import TrainConfig
from gmtool.data.datasets import load_training_data
from gmtool.errors import ConfigError
from gmtool.nn.checkpoint import build_network
from gmtool.nn.model import GuidedMixNet
from gmtool.settings import Settings, build_config

FROZEN: Settings = {"optim.freeze_encoder": True, "method.name": "supervised", "run.precision": "32-true"}


def frozen(config: TrainConfig) -> GuidedMixNet:
    torch.manual_seed(0)
    network = build_network(config.model, load_classes(config.data.classes)).train()
    freeze(network.encoder)
    network.decoder.eval()  # its dropout is random
    return network


def count_crops(network: GuidedMixNet) -> list[int]:
    """Return a list that gets the number of images of each pass through the encoder."""
    seen: list[int] = []
    network.encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize("decoder", ["guidedmix", "pyramid"])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_crop_that_comes_again_is_not_computed_again(decoder: str, scale: float, toy_settings: Settings) -> None:
    changes: Settings = {"model.decoder": decoder, "model.input_scale": scale}
    config = build_config(toy_settings, FROZEN, changes, {"data.kept_crops": 2})
    network, plain = frozen(config), frozen(config)
    keep_features(network, config)
    seen = count_crops(network)
    crops = torch.randn(3, 3, 40, 40)
    first = network(crops[[0, 1]]).logits
    torch.testing.assert_close(first, plain(crops[[0, 1]]).logits, atol=1e-4, rtol=1e-4)
    network(crops[[1, 2]])
    assert torch.equal(network(crops[[0, 1]]).logits, first)
    assert seen == [1, 1, 1]
    assert not network.features(network.pad(crops[:1]))[0].requires_grad
    network.eval()
    network(crops)
    assert seen[3:] == [3], "images of a validation are computed as they are, and not kept"


def test_the_memory_is_said_and_is_what_features_take(
    toy_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for size, precision, width in ((40, "32-true", 4), (33, "bf16-mixed", 2)):
        changes = {"data.kept_crops": 5, "data.crop_px": size, "run.precision": precision}
        config = build_config(toy_settings, FROZEN, changes)
        network = frozen(config)
        keep_features(network, config)
        features = network.features(network.pad(torch.zeros(1, 3, size, size)))
        assert {level.element_size() for level in features} == {width}
        assert crop_bytes(network, config) == sum(level.numel() for level in features) * width
        require_room(network, config, 1000, Machine(torch.device("cpu")))
        mib = 5 * 1000 * crop_bytes(network, config) / 2**20
        said = f"features of 5 crops of each of 1000 labeled images in memory: up to {mib:.0f} MiB"
        assert said in capsys.readouterr().err


def test_too_many_crops_are_refused_with_a_number_that_fits(
    toy_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(toy_settings, FROZEN, {"data.kept_crops": 9})
    network = frozen(config)
    free = 2 * 7 * 10 * crop_bytes(network, config)
    monkeypatch.setattr(kept_features, "available_memory", lambda: free)
    with pytest.raises(ConfigError, match=r"^data.kept_crops=9: .*: --set data.kept_crops=7, take a smaller"):
        require_room(network, config, 10, Machine(torch.device("cpu")))
    with pytest.raises(ConfigError, match="--set data.kept_crops=3, take"):
        require_room(network, config, 10, Machine(torch.device("cpu"), processes=2))
    monkeypatch.setattr(kept_features, "available_memory", lambda: free // 8)
    with pytest.raises(ConfigError, match="leave data.kept_crops out"):
        require_room(network, config, 10, Machine(torch.device("cpu")))


def test_crops_come_again_after_so_many_epochs(toy_settings: Settings) -> None:
    def batches(kept: int) -> list[Tensor]:
        config = build_config(toy_settings, FROZEN, {"data.kept_crops": kept, "data.labeled_batch": 2})
        samples = load_training_data(config.data).labeled.samples[:2]
        classes = load_classes(config.data.classes)
        found = labeled_batches(samples, classes, config.data, seed=0, pin_memory=False)
        # The order differs from epoch to epoch
        return [images.sort(dim=0).values for images, _ in (next(found) for _ in range(6))]

    again, always_new = batches(2), batches(0)
    for number in range(2, 6):
        assert torch.equal(again[number], again[number - 2])
    assert not torch.equal(again[0], again[1])
    assert all(not torch.equal(each, always_new[0]) for each in always_new[1:])
    assert torch.equal(again[0], always_new[0])


@pytest.mark.parametrize("missing", ["optim.freeze_encoder", "method.name"])
def test_what_kept_features_need_is_said(missing: str, toy_settings: Settings) -> None:
    settings = {name: value for name, value in FROZEN.items() if name != missing}
    with pytest.raises(ConfigError, match=rf"^setting data.kept_crops: got 4; needs --set {missing}="):
        build_config(toy_settings, settings, {"data.kept_crops": 4})
