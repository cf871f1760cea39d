import pytest
import torch
from torch import nn

from gmtool.nn.mitrans import MITrans, NonLocal, PixelShuffleUp


def test_both_forms_of_attention_give_the_same() -> None:
    torch.manual_seed(0)
    block = NonLocal(16)
    x = torch.randn(2, 16, 5, 7)
    fused = block(x)
    block.materialize = True
    torch.testing.assert_close(block(x), fused, atol=1e-5, rtol=1e-5)


def test_attention_is_scaled_softmax_over_key_positions_plus_residual() -> None:
    torch.manual_seed(0)
    block = NonLocal(8)
    x = torch.randn(1, 8, 2, 3)
    columns = x[0].flatten(1)
    state = block.state_dict()
    query, key, value = (
        state[f"{part}.weight"][:, :, 0, 0] @ columns + state[f"{part}.bias"][:, None]
        for part in ("query", "key", "value")
    )
    expected = torch.empty(8, 6)
    for position in range(6):
        weights = torch.softmax(query[:, position] @ key / 4**0.5, dim=0)
        expected[:, position] = columns[:, position] + value @ weights
    torch.testing.assert_close(block(x)[0].flatten(1), expected, atol=1e-5, rtol=1e-5)


def test_icnr_starts_without_a_checkerboard() -> None:
    """The four sub-pixels of each position agree at the start."""
    torch.manual_seed(0)
    up = PixelShuffleUp(6, 3)(torch.randn(1, 6, 4, 4))
    assert up.shape == (1, 3, 8, 8)
    torch.testing.assert_close(up[..., ::2, ::2], up[..., 1::2, 1::2])
    torch.testing.assert_close(up[..., ::2, ::2], up[..., ::2, 1::2])


def test_the_switch_removes_the_non_local_block_alone() -> None:
    with_block = MITrans(16, 8, skip_channels=4, non_local=True)
    without = MITrans(16, 8, skip_channels=4, non_local=False)
    removed = set(dict(with_block.named_parameters())) - set(dict(without.named_parameters()))
    assert removed == {
        f"attention.{part}.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias")
    }
    assert isinstance(without.attention, nn.Identity)


def test_detail_of_the_earlier_layer_reaches_the_result() -> None:
    torch.manual_seed(0)
    module = MITrans(16, 8, skip_channels=4, non_local=False).eval()
    x, skip = torch.randn(1, 16, 3, 3), torch.randn(1, 4, 6, 6)
    assert module(x, skip).shape == (1, 8, 6, 6)
    assert not torch.equal(module(x, skip), module(x, skip + 1))


@pytest.mark.parametrize("training", [False, True])
def test_attention_makes_no_matrix_of_positions(training: bool) -> None:
    block = NonLocal(16).train(training)
    x = torch.randn(1, 16, 48, 64, requires_grad=training)
    positions = 48 * 64
    with torch.profiler.profile(profile_memory=True) as profile, torch.set_grad_enabled(training):
        output = block(x)
        if training:
            output.square().mean().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest < positions**2  # of 4 positions ** 2 bytes
