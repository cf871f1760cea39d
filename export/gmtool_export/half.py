"""Whether a network's activations fit into float16, whose largest number is 65 504."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from gmtool.errors import ParityError
from gmtool.images import UInt8Array
from gmtool.nn.model import GuidedMixNet
from gmtool_export.parity import reference_logits

LARGEST_HALF = 65_504


@dataclass(frozen=True)
class Headroom:
    """The largest activation of a network on some images."""

    layer: str
    value: float


def half_headroom(network: GuidedMixNet, images: UInt8Array) -> Headroom:
    """Return the largest absolute activation on images (N, H, W, 3), computed in float32.

    On a processor ONNX Runtime computes a float16 graph in float32 and would not show an overflow.

    Raises:
        ParityError: It would not fit into float16.
    """
    largest: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                largest[name] = max(largest.get(name, 0.0), float(output.abs().max()))

        return look

    # A convolution without bias is followed by batch normalisation, with which the export merges it
    watched = [
        (name, module)
        for name, module in network.named_modules()
        if name and not (isinstance(module, nn.Conv2d) and module.bias is None)
    ]
    handles = [module.register_forward_hook(watch(name)) for name, module in watched]
    try:
        reference_logits(network, images)
    finally:
        for handle in handles:
            handle.remove()
    layer = max(largest, key=lambda name: largest[name])
    if not largest[layer] <= LARGEST_HALF:
        raise ParityError(
            f"fp16: {layer} reaches {largest[layer]:.0f}, and float16 holds up to {LARGEST_HALF}: take fp32 "
            "or int8; nothing was written"
        )
    return Headroom(layer, largest[layer])
