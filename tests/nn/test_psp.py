import pytest
import torch
import torch.nn.functional as F

from gmtool.nn.psp import BINS, PyramidPooling, adaptive_average_pool, bilinear_resize


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (6, 6), (17, 25), (24, 24), (41, 41), (33, 64)])
@pytest.mark.parametrize("bins", BINS)
def test_matrix_pooling_equals_torch(size: tuple[int, int], bins: int) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        adaptive_average_pool(x, bins), F.adaptive_avg_pool2d(x, bins), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (6, 6), (17, 25), (41, 41), (128, 256)])
@pytest.mark.parametrize("bins", BINS)
def test_matrix_resize_equals_torch(size: tuple[int, int], bins: int) -> None:
    x = torch.randn(2, 3, bins, bins, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(x, size=size, mode="bilinear")
    torch.testing.assert_close(bilinear_resize(x, size), expected, atol=1e-5, rtol=1e-5)


def test_pooling_sees_the_whole_image() -> None:
    """Far positions change the context of a position: what pyramid pooling is for."""
    torch.manual_seed(0)
    pooling = PyramidPooling(8, 16).eval()
    x = torch.randn(1, 8, 20, 20)
    changed = x.clone()
    changed[..., -1, -1] += 100
    with torch.no_grad():
        assert not torch.equal(pooling(x)[..., 0, 0], pooling(changed)[..., 0, 0])
