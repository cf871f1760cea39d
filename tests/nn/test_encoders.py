"""Every kind of encoder under the contract: ResNets, timm's pyramids, plain vision transformers."""

import pytest
import timm
import torch
from encoder_contract import EncoderContract
from timm.layers import resample_abs_pos_embed

from gmtool.config import ModelConfig
from gmtool.errors import ConfigError
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.position_embedding import resample_position_embedding
from gmtool.nn.timm_encoder import TimmEncoder


class TestToy(EncoderContract):
    name = "toy"


class TestResNet(EncoderContract):
    name, output_stride, last_stride = "resnet18", 16, 16


class TestDilatedPyramid(EncoderContract):
    """ConvNeXt, EfficientNet, MobileNet, ResNet of timm: they take an output stride."""

    name = "timm:test_efficientnet"


class TestPyramidOfStride32(EncoderContract):
    """FastViT, RepViT, PVT, EfficientViT: they have one output stride."""

    name, last_stride = "timm:repvit_m0_9", 32


class TestPyramidOfStride32WithPyramidDecoder(EncoderContract):
    name, decoder, last_stride = "timm:pvt_v2_b0", "pyramid", 32


class TestPlainVisionTransformer(EncoderContract):
    """As DINOv2: absolute positions, a grid of its own."""

    name, decoder, last_stride = "timm:test_vit", "pyramid", 16


class TestRotaryVisionTransformer(EncoderContract):
    """DINOv3 itself: the smallest one that timm has."""

    name, decoder, last_stride = "timm:vit_small_patch16_dinov3", "pyramid", 16


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
        expected = whole.forward_intermediates(encoder.scale * image + encoder.shift, intermediates_only=True)[-1]
        torch.testing.assert_close(encoder(image)[-1], expected, atol=1e-3, rtol=1e-3)


def test_the_papers_decoder_refuses_a_plain_vision_transformer() -> None:
    with pytest.raises(ConfigError, match="model.decoder=pyramid"):
        GuidedMixNet(ModelConfig(encoder="timm:test_vit"), num_classes=3, num_foreground=2)


def test_a_stride_that_a_network_lacks_is_refused_with_its_own() -> None:
    with pytest.raises(ConfigError, match="its output stride is 32, not 8: leave model.output_stride out"):
        TimmEncoder("timm:repvit_m0_9", output_stride=8)


def test_the_pyramid_decoder_starts_as_a_linear_classifier() -> None:
    torch.manual_seed(0)
    network = GuidedMixNet(
        ModelConfig(encoder="toy", decoder="pyramid", decoder_channels=16), num_classes=3, num_foreground=2
    ).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = network(image).logits
        torch.nn.init.normal_(network.decoder.refine[2].weight)
        torch.testing.assert_close(network(image).logits, before)
