import pytest
import torch

from gmtool.config import ModelConfig
from gmtool.nn.guidedmix_decoder import GuidedMixDecoder
from gmtool.nn.mitrans import NonLocal
from gmtool.nn.model import GuidedMixNet, normalize


def network(**changes: object) -> GuidedMixNet:
    torch.manual_seed(0)
    config = ModelConfig(encoder="toy", decoder_channels=32, **changes)  # type: ignore[arg-type]
    return GuidedMixNet(config, num_classes=4, num_foreground=3)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 133), (1, 1)])
def test_any_size_goes_in_and_comes_out(output_stride: int, size: tuple[int, int]) -> None:
    with torch.no_grad():
        output = network(output_stride=output_stride).eval()(torch.randn(2, 3, *size))
    assert output.logits.shape == (2, 4, *size)
    assert output.image_logits.shape == (2, 3)
    assert output.embedding.shape == (2, 64)


def test_padding_is_zeros_to_the_right_and_below() -> None:
    model = network().eval()
    image = torch.randn(1, 3, 21, 30)
    padded = torch.zeros(1, 3, 24, 32)
    padded[..., :21, :30] = image
    with torch.no_grad():
        torch.testing.assert_close(model(image).logits, model(padded).logits[..., :21, :30])


def test_logits_are_linear() -> None:
    with torch.no_grad():
        assert network().eval()(torch.randn(2, 3, 32, 32)).logits.min() < 0


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, False), (True, True)])
def test_non_local_blocks_stand_where_the_switches_say(first: bool, second: bool) -> None:
    model = network(non_local_1=first, non_local_2=second)
    assert isinstance(model.decoder, GuidedMixDecoder)
    assert isinstance(model.decoder.mitrans1.attention, NonLocal) == first
    assert isinstance(model.decoder.mitrans2.attention, NonLocal) == second


@pytest.mark.parametrize(("input_scale", "expected"), [(1.0, "8"), (0.5, "16"), (2.0, "4")])
def test_whole_strides_of_the_attention_are_integers(input_scale: float, expected: str) -> None:
    attention = network(non_local_1=True, input_scale=input_scale).attention
    assert attention is not None
    assert str(attention.stride) == expected


def test_normalize_is_torchvisions() -> None:
    from torchvision.transforms.v2.functional import normalize as reference

    image = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = reference(image / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    torch.testing.assert_close(normalize(image), expected)
