import pytest
import torch
import torch.nn.functional as F

from gmtool.nn import psp
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


def test_matrices_are_made_once_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # A third of the kernels of a forward pass were those of matrices that the pass before had made
    psp._kept.cache_clear()
    made: list[int] = []
    arange = torch.arange

    def note(end: int, *, device: torch.device) -> torch.Tensor:
        made.append(end)
        return arange(end, device=device)

    monkeypatch.setattr(torch, "arange", note)
    pooling = PyramidPooling(8, 16)
    x = torch.randn(2, 8, 20, 21)
    counts = []
    for image in (x, x, x[..., :-2]):
        made.clear()
        pooling(image)
        counts.append(len(made))
    assert counts[0] > 0 == counts[1] and counts[2] > 0
    assert adaptive_average_pool(x.double(), 3).dtype == torch.float64


def test_matrices_of_a_validation_serve_the_next_training_step() -> None:
    psp._kept.cache_clear()
    pooling = PyramidPooling(8, 16)
    x = torch.randn(2, 8, 20, 21)
    with torch.inference_mode():
        pooling(x)
    pooling(x).sum().backward()
    assert all(parameter.grad is not None for parameter in pooling.parameters())
