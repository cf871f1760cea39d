"""Pixels that validation counts where the network computes, and precision and kernels on cards."""

import numpy as np
import pytest
import torch
from gmtool_training.engine import machine as machine_module
from gmtool_training.engine.machine import choose_kernels, open_machine
from gmtool_training.loop.validate import count_pairs_on_device

from gmtool.config import PrecisionName
from gmtool.report.metrics import count_pairs


def test_pixels_counted_on_a_device_are_those_counted_on_the_processor() -> None:
    random = np.random.default_rng(0)
    truth, prediction = (random.integers(0, 256, (30, 40), dtype=np.uint8) for _ in range(2))
    truth[:10], prediction[5:20] = 255, 3
    found = count_pairs_on_device(torch.from_numpy(truth), torch.from_numpy(prediction))
    assert np.array_equal(found.numpy(), count_pairs(truth, prediction))
    assert found.sum() == truth.size


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        ((9, 0), "bf16-mixed"),
        ((8, 0), "bf16-mixed"),
        ((7, 5), "16-mixed"),
        ((7, 0), "16-mixed"),
        ((6, 1), "32-true"),
    ],
)
def test_the_precision_of_a_card_follows_from_its_compute_capability(
    capability: tuple[int, int], precision: PrecisionName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 from Ampere on, float16 on Volta and Turing (V100, T4)."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: None)
    monkeypatch.setattr(machine_module, "choose_kernels", lambda: None)
    machine, device, found = open_machine("auto", "auto")
    assert (device, found, str(machine.device)) == ("cuda", precision, "cuda:0")
    assert (machine.scaler is not None) == (precision == "16-mixed")


def test_float32_is_not_tf32_and_no_algorithms_are_tried() -> None:
    """The probe sees images of many sizes: on an H200, trying algorithms took 5 s for each view of a new size."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32
    try:
        cudnn.benchmark = True
        choose_kernels()
        assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == (False, False, False)
    finally:
        cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32 = before
