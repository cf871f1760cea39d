"""Features of a frozen encoder that are kept: for a crop that comes again, a step costs the decoder alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from gmtool.config import TrainConfig
from gmtool.console import remark
from gmtool.errors import ConfigError
from gmtool.nn.encoder import Features
from gmtool.nn.model import GuidedMixNet
from gmtool.resources import available_memory
from gmtool_training.engine.machine import Machine

MAX_SHARE = 0.5
"""Share of the memory that is free which features may take."""
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What features are kept in, by `run.precision`; else in float32. Encoders that end in a layer normalisation give
float32 in all of them: their features are rounded."""


def require_room(network: GuidedMixNet, config: TrainConfig, labeled: int, machine: Machine) -> None:
    """Say how much memory the features of `data.kept_crops` crops of each labeled image will take.

    Each process meets all images: on processors, all processes count.

    Args:
        network: The network.
        config: Settings of the run.
        labeled: Number of labeled images.
        machine: Device and processes.

    Raises:
        ConfigError: That is more than half of what is free.
    """
    crops = config.data.kept_crops
    if not crops:
        return
    on_card = machine.device.type == "cuda"
    of_one = crop_bytes(network, config) * labeled * (1 if on_card else machine.processes)
    room = int(MAX_SHARE * (torch.cuda.mem_get_info(machine.device)[0] if on_card else available_memory()))
    if crops * of_one > room:
        remedy = f"--set data.kept_crops={room // of_one}" if of_one <= room else "leave data.kept_crops out"
        raise ConfigError(
            f"data.kept_crops={crops}: features of {crops} crops of each of {labeled} labeled images need "
            f"{crops * of_one / 2**20:.0f} MiB; {room / 2**20:.0f} MiB may be used, half of what is free: "
            f"{remedy}, take a smaller data.crop_px, or free memory"
        )
    remark(
        f"keeping features of {crops} crops of each of {labeled} labeled images in memory: up to "
        f"{crops * of_one / 2**20:.0f} MiB"
    )


def crop_bytes(network: GuidedMixNet, config: TrainConfig) -> int:
    """Return the memory of the features of one crop."""
    padded = -(-config.data.crop_px // network.multiple) * network.multiple
    levels = zip(network.encoder.channels, network.encoder.strides, strict=True)
    values: int = sum(channels * round(padded * network.input_scale / stride) ** 2 for channels, stride in levels)
    return values * HALF.get(config.run.precision, torch.float32).itemsize


def keep_features(network: GuidedMixNet, config: TrainConfig) -> None:
    """Let a network whose encoder is frozen compute the features of each training crop once, in place."""
    network.features = _KeptFeatures(network, HALF.get(config.run.precision, torch.float32))  # type: ignore[method-assign]


class _KeptFeatures:
    """Features by the content of a crop.

    A crop's features are computed from it alone, not from the batch in which it first came, so that they are the
    same ones in a resumed run. On a card each step waits for its crops, to recognise them.
    """

    def __init__(self, network: GuidedMixNet, dtype: torch.dtype) -> None:
        self._network, self._compute, self._dtype = network, network.features, dtype
        self._kept: dict[bytes, Features] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, padded: Tensor) -> Features:
        if not self._network.training:  # whole images are validated
            return self._compute(padded)
        found = [self._of(crop) for crop in torch.split(padded, 1)]
        return [torch.cat(level) for level in zip(*found, strict=True)]

    def _of(self, crop: Tensor) -> Features:
        key = hashlib.blake2b(crop.contiguous().cpu().numpy().data, digest_size=16).digest()
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = [level.to(self._dtype) for level in self._compute(crop)]
        return self._kept[key]
