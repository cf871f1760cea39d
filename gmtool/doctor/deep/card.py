"""Deep check: NVIDIA's driver, the cards, and a first computation of torch on each."""

from __future__ import annotations

from gmtool.doctor.deep.result import Checked, CheckFailedError, LeftOutError, Setting, require
from gmtool.doctor.probes import run_probe


def check(setting: Setting) -> Checked:
    """Compare the cards of the driver with those of torch, and multiply matrices on each."""
    del setting
    # The driver
    probe = run_probe("driver")
    value = probe.value
    if probe.failure is not None:
        raise CheckFailedError(f"cuInit: {probe.failure}")
    if not value["there"]:
        raise LeftOutError("no NVIDIA driver: everything is computed on the processor")
    if value["status"] == 100:  # CUDA_ERROR_NO_DEVICE
        raise LeftOutError(f"the driver knows CUDA {value['cuda']} and finds no GPU")
    require(value["status"] == 0, f"cuInit fails with {value['status']}")
    # Cards in torch
    import torch

    build = f"torch {torch.__version__} built for CUDA {torch.version.cuda}"
    cards, seen = value["gpus"], torch.cuda.device_count()
    require(seen > 0, f"the driver sees {len(cards)} GPUs, {build} sees none")
    for index in range(seen):
        ones = torch.ones(512, 512, device=f"cuda:{index}")
        require(bool((ones @ ones == 512).all()), f"cuda:{index}: a product of matrices is wrong")
    names = [
        f"{card['name']}, compute capability {card['compute_capability']}, {card['memory_bytes'] / 2**30:.0f} GiB"
        for card in cards
    ]
    text = f"{'; '.join(names)}; driver {value['release']}, up to CUDA {value['cuda']}; {build}"
    return Checked(text, figures={"cards": seen, "gpus": cards, "driver": value["release"], "cuda": value["cuda"]})
