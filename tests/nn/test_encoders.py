"""Every kind of encoder under the contract: ResNets, timm's pyramids, plain vision transformers."""

from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from encoder_contract import EncoderContract
from timm.layers.pos_embed import resample_abs_pos_embed

from gmtool.config import ModelConfig
from gmtool.errors import ConfigError
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.position_embedding import resample_position_embedding
from gmtool.nn.pyramid_decoder import PyramidDecoder
from gmtool.nn.timm_encoder import TimmEncoder


class TestToy(EncoderContract):
    name = "toy"


class TestResNet(EncoderContract):
    name, decoder, output_stride, last_stride = "resnet18", "pyramid", 16, 16


class TestDilatedPyramid(EncoderContract):
    """ConvNeXt, EfficientNet, MobileNet, ResNet of timm: they take an output stride."""

    name, decoder = "timm:test_efficientnet", "pyramid"


class TestPyramidOfStride32(EncoderContract):
    """FastViT, MambaOut, RepViT, PVT, EfficientViT: they have one output stride. Here PVT with a block a stage."""

    name, decoder, last_stride = "timm:pvt_v2_b0", "pyramid", 32

    @pytest.fixture(autouse=True)
    def one_block_a_stage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depths=(1, 1, 1, 1)))


class TestPlainVisionTransformer(EncoderContract):
    """As DINOv2: absolute positions, a grid of its own."""

    name, decoder, last_stride = "timm:test_vit", "pyramid", 16


class TestRotaryVisionTransformer(EncoderContract):
    """DINOv3: the smallest one that timm has, with four of its twelve blocks."""

    name, decoder, last_stride = "timm:vit_small_patch16_dinov3", "pyramid", 16

    @pytest.fixture(autouse=True)
    def four_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=4))


def test_a_vision_transformer_gives_four_layers_evenly_spaced() -> None:
    encoder = TimmEncoder("timm:vit_small_patch14_dinov2", output_stride=None)
    assert encoder.model.out_indices == [2, 5, 8, 11]
    assert encoder.strides == (14, 14, 14, 14)
    assert encoder.license == "apache-2.0"
    assert encoder.attention == (14, 6)


@pytest.mark.parametrize("new", [(12, 20), (37, 37), (50, 9)])
def test_positions_are_resampled_as_timm_does(new: tuple[int, int]) -> None:
    embedding = torch.randn(1, 5 + 37 * 37, 24, generator=torch.Generator().manual_seed(0))
    ours = resample_position_embedding(embedding, new, (37, 37), 5)
    torch.testing.assert_close(ours, resample_abs_pos_embed(embedding, list(new), [37, 37], 5), atol=1e-5, rtol=0)


def test_a_vision_transformer_computes_as_timms_own() -> None:
    encoder = TimmEncoder("timm:test_vit", output_stride=None).eval()
    torch.manual_seed(0)
    whole = timm.create_model("test_vit", dynamic_img_size=True).eval()
    whole.load_state_dict(
        {name.removeprefix("model."): value for name, value in encoder.model.state_dict().items()}, strict=False
    )
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = whole.forward_intermediates(  # type: ignore[operator]
            encoder.scale * image + encoder.shift, intermediates_only=True
        )[-1]
        torch.testing.assert_close(encoder(image)[-1], expected, atol=1e-3, rtol=1e-3)


def test_the_papers_decoder_refuses_a_plain_vision_transformer() -> None:
    with pytest.raises(ConfigError, match="model.decoder=pyramid"):
        GuidedMixNet(ModelConfig(encoder="timm:test_vit"), num_classes=3, num_foreground=2)


def test_a_stride_that_a_network_lacks_is_refused_with_its_own() -> None:
    with pytest.raises(ConfigError, match="its output stride is 32, not 8: leave model.output_stride out"):
        TimmEncoder("timm:repvit_m0_9", output_stride=8)


def test_the_pyramid_decoder_is_a_classifier_of_all_levels_concatenated() -> None:
    """Against the same sum written with the maps upsampled first and one matrix."""
    torch.manual_seed(0)
    decoder = PyramidDecoder((4, 8, 16, 16), (3, 4, 5, 6), channels=7, num_classes=3).eval()
    sizes = zip((3, 4, 5, 6), (16, 8, 4, 4), strict=True)
    features = [torch.randn(2, width, 2 * side, 3 * side) for width, side in sizes]
    for name, value in decoder.named_buffers():
        if name.endswith("running_mean"):
            value.normal_()
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
    size = features[1].shape[-2:]
    *maps, whole = decoder.levels(features)
    same = [F.interpolate(each, size=size, mode="bilinear") for each in maps] + [whole.expand(-1, -1, *size)]
    mean, var = (
        torch.cat([getattr(norm, name) for norm in decoder.norms]) for name in ("running_mean", "running_var")
    )
    x = (torch.cat(same, dim=1) - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
    weight = torch.cat([decoder.state_dict()[f"project.{level}.weight"] for level in range(6)], dim=1)
    bias = decoder.state_dict()["project.0.bias"]
    expected = decoder.classifier(F.conv2d(x, weight, bias).relu())
    with torch.no_grad():
        torch.testing.assert_close(decoder(features).scores, expected, rtol=1e-4, atol=1e-5)


def test_a_pyramid_decoder_without_hidden_layer_is_linear() -> None:
    torch.manual_seed(0)
    decoder = PyramidDecoder((8, 16), (3, 4), channels=0, num_classes=3).eval()
    first, second = ([torch.randn(1, 3, 8, 8), torch.randn(1, 4, 4, 4)] for _ in range(2))
    both = [a + b for a, b in zip(first, second, strict=True)]
    nothing = [torch.zeros_like(each) for each in first]
    with torch.no_grad():
        one, two, sum_, zero = (decoder(each).scores for each in (first, second, both, nothing))
    torch.testing.assert_close(one + two - zero, sum_, rtol=1e-4, atol=1e-5)
