"""Constant padding gives what timm's `same` convolutions give."""

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame

from gmtool.nn.same_padding import PaddedConv2d, make_padding_constant


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("size", [(8, 12), (32, 16)])
def test_same_convolutions_keep_their_values(
    kernel: int, stride: int, dilation: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Sequential(Conv2dSame(3, 4, kernel, stride=stride, dilation=dilation)), torch.nn.Conv2d(4, 2, 3)
    )
    image = torch.randn(2, 3, *size)
    expected = network(image)
    names = list(network.state_dict())
    make_padding_constant(network)
    assert isinstance(network[0][0], PaddedConv2d) and type(network[1]) is torch.nn.Conv2d  # type: ignore[index]
    torch.testing.assert_close(network(image), expected)
    assert list(network.state_dict()) == names
