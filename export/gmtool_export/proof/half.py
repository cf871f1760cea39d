"""Headroom of float16 (largest number 65 504): largest magnitude in the part of a network that it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gmtool.errors import ParityError
from gmtool.images import UInt8Array
from gmtool.nn.model import GuidedMixNet, normalize
from gmtool_export.graph.deploy import DeployModel

LARGEST_HALF = 65_504
STAND_IN = torch.float64


@dataclass(frozen=True)
class Headroom:
    """Layer with the largest magnitude, and that value."""

    layer: str
    value: float


def half_headroom(network: GuidedMixNet, images: UInt8Array) -> Headroom:
    """Return the largest absolute value of the float16 part on images, (N, H, W, 3) uint8.

    The results of all operations count, not only those of layers: a product inside attention can overflow too. On
    a CPU ONNX Runtime computes float16 graphs in float32 and would not show it. float64 takes the place of
    float16, to tell it from the parts that stay in float32.

    Raises:
        ParityError: The value does not fit into float16.
    """
    deployed = DeployModel(network).network.to(STAND_IN)  # a copy, with attention written as plain products
    watch = MagnitudeWatch(deployed)
    with torch.no_grad():
        padded = deployed.pad(normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
        # An encoder may call PyTorch's fused attention, which the export writes as plain products too
        with sdpa_kernel(SDPBackend.MATH), watch:
            deployed.scores(padded.to(STAND_IN))
    layer, value = watch.largest()
    if value > LARGEST_HALF:
        raise ParityError(
            f"fp16: {layer} reaches {value:.0f}, and float16 holds up to {LARGEST_HALF}: use fp32 "
            "or int8; nothing was written"
        )
    return Headroom(layer, value)


class MagnitudeWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that records the largest absolute float64 result of each layer.

    Args:
        network: Network whose layers get hooks, which stay: pass a copy.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values: dict[str, float] = {}
        self._unmerged: tuple[str, float] | None = None
        """Name and value of a convolution that the export may merge with a following batch normalisation."""
        self._inside: list[tuple[str, nn.Module]] = []
        for name, module in network.named_modules():
            module.register_forward_pre_hook(lambda layer, _, name=name: self._inside.append((name, layer)))
            module.register_forward_hook(lambda *_: (self._inside.pop(), None)[1])

    def largest(self) -> tuple[str, float]:
        """Return the layer with the largest value, and the value; NaN counts as infinite."""
        self._settle(merged=False)
        layer = max(self._values, key=self._values.__getitem__)
        return layer, self._values[layer]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and record its results."""
        given = func(*args, **(kwargs or {}))
        name, layer = self._inside[-1] if self._inside else ("the network", None)
        self._settle(merged=isinstance(layer, nn.BatchNorm2d))
        for value in map(_magnitude, tree_leaves(given)):
            if isinstance(layer, nn.Conv2d) and layer.bias is None:
                self._unmerged = (name, value)
            else:
                self._note(name, value)
        return given

    def _settle(self, *, merged: bool) -> None:
        if self._unmerged is not None and not merged:
            self._note(*self._unmerged)
        self._unmerged = None

    def _note(self, name: str, value: float) -> None:
        self._values[name] = max(self._values.get(name, 0.0), value)


def _magnitude(value: object) -> float:
    if not isinstance(value, Tensor) or value.dtype != STAND_IN or value.numel() == 0:
        return 0.0
    largest = float(value.abs().max())
    return math.inf if math.isnan(largest) else largest
