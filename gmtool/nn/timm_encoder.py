"""Encoders of timm: convolutional and transformer pyramids, and plain vision transformers."""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from gmtool.config import TIMM_PREFIX
from gmtool.errors import CheckpointError, ConfigError, needs_extra
from gmtool.images import IMAGENET_MEAN, IMAGENET_STD
from gmtool.nn.encoder import Attention, Features
from gmtool.nn.position_embedding import resample_position_embedding

VIT_LEVELS = 4
"""Layers of a plain vision transformer whose tokens are feature maps, evenly spaced, the last one included."""
DILATED_STRIDES = (8, 16)
"""Output strides that timm's convolutional networks take; 32 is what they have by themselves."""


class TimmEncoder(nn.Module):
    """A network of timm without its classifier.

    A pyramid gives its maps from stride 4 on; a plain vision transformer four layers of one stride.

    Args:
        name: `timm:` and timm's own name, for example `timm:convnext_tiny`.
        output_stride: 8, 16 or 32 where the network can choose; None for 8 there, and else for its own.

    Raises:
        ConfigError: timm has no such network, it gives no feature maps, or not at this output stride.
        MissingExtraError: timm is not installed.
    """

    def __init__(self, name: str, *, output_stride: int | None) -> None:
        super().__init__()
        self.model = _create(name, output_stride=output_stride, pretrained=False)
        info: Any = self.model.feature_info
        reductions, channels = list(info.reduction()), list(info.channels())
        self._first = next((level for level, stride in enumerate(reductions) if stride >= 4), 0)
        self.strides, self.channels = tuple(reductions[self._first :]), tuple(channels[self._first :])
        self.multiple = max(self.strides)
        self.attention = _attention(self.model, self.multiple)
        self._channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        # Images arrive with ImageNet's mean and deviation; a few networks were trained with others
        trained_with: Any = self.model.default_cfg
        mean, std = trained_with["mean"], trained_with["std"]
        self.license: str | None = trained_with.get("license")
        """Licence of the published weights, as timm states it, for example `apache-2.0`."""
        own_mean, own_std = torch.tensor(mean), torch.tensor(std)
        scale = torch.tensor(IMAGENET_STD) / own_std
        shift = (torch.tensor(IMAGENET_MEAN) - own_mean) / own_std
        self._is_shifted = not (torch.allclose(scale, torch.ones(3)) and torch.allclose(shift, torch.zeros(3)))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    @property
    def stages(self) -> list[nn.Module]:
        """Parts that are called one after another."""
        plain = getattr(self.model, "model", self.model)  # a vision transformer lies inside what gives its layers
        parts = [(name, child) for name, child in plain.named_children() if list(child.parameters())]
        return [stage for name, child in parts for stage in (child.children() if name == "blocks" else [child])]

    def forward(self, image: Tensor) -> Features:
        """Return the features of normalised images (B, 3, H, W), H and W multiples of `multiple`."""
        maps = self.model(image * self.scale + self.shift if self._is_shifted else image)[self._first :]
        return [each.permute(0, 3, 1, 2) for each in maps] if self._channels_last else list(maps)


def download_timm_weights(name: str) -> dict[str, Tensor]:
    """Return timm's published weights for an encoder, under the names of `TimmEncoder`.

    Raises:
        CheckpointError: They could not be downloaded, or there are none.
    """
    try:
        state: dict[str, Tensor] = _create(name, output_stride=None, pretrained=True).state_dict()
    except (ConfigError, CheckpointError):
        raise
    except Exception as error:  # the hub, urllib and file systems raise a dozen types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"encoder weights of {name} could not be downloaded ({reason}): give a file with "
            "--encoder-weights FILE, or --encoder-weights none"
        ) from error
    return {f"model.{key}": value for key, value in state.items()}


def as_encoder_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a file's weights, in timm's names with or without flattened stages, as `TimmEncoder` names them."""
    named = {f"model.{name}": value for name, value in weights.items()}
    # timm calls `stages.0.x` `stages_0.x` where it gives features, and wraps a vision transformer once more
    flat = {re.sub(r"^model\.([a-z]+)\.(\d+)\.", r"model.\1_\2.", name): value for name, value in named.items()}
    wrapped = {f"model.{name}": value for name, value in named.items()}
    return wrapped | flat | named


def refuse_unknown_network(name: str) -> None:
    """Raise `ConfigError` if timm has no network `timm:NAME`; other names are not looked at.

    Raises:
        MissingExtraError: timm is not installed.
    """
    if not name.startswith(TIMM_PREFIX):
        return
    with needs_extra("timm", f"encoder {name}"):
        import timm
    own_name = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(own_name):
        close = get_close_matches(own_name, timm.list_models(), n=1, cutoff=0)
        raise ConfigError(f"model.encoder={name}: timm has no {own_name}; did you mean timm:{close[0]}?")


def _create(name: str, *, output_stride: int | None, pretrained: bool) -> nn.Module:
    refuse_unknown_network(name)
    own_name = name.removeprefix(TIMM_PREFIX)
    # Dilated as asked for, else as the network is, else as a transformer that takes any size
    dilated = output_stride or DILATED_STRIDES[0]
    ways: list[dict[str, Any]] = [{"output_stride": dilated}] if dilated in DILATED_STRIDES else []
    problems: list[str] = []
    for options in (*ways, {}, {"dynamic_img_size": True}):
        try:
            model = _with_features(own_name, pretrained=False, **options)
            problem = _problem(model, output_stride)
        except (TypeError, AssertionError, NotImplementedError, RuntimeError, AttributeError, ValueError) as error:
            # timm's networks refuse in six ways: an unknown argument, a bare assertion, a missing attribute, ...
            problems.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
            continue
        if not problem:
            _resample_positions_by_matrices(model)
            return _with_features(own_name, pretrained=True, **options) if pretrained else model
        problems.insert(0, problem)  # says more than a refused argument
    raise ConfigError(f"model.encoder={name}: timm gives no feature maps that fit: {problems[0]}")


def _with_features(own_name: str, **options: Any) -> nn.Module:
    """Return a network that gives feature maps; of a plain vision transformer, `VIT_LEVELS` of its layers."""
    import timm

    model: nn.Module = timm.create_model(own_name, features_only=True, **options)
    info: Any = model.feature_info
    if len(info.info) > 1 and len({layer["reduction"] for layer in info.info}) == 1:
        depth = len(info.info)
        layers = [round((level + 1) * depth / VIT_LEVELS) - 1 for level in range(VIT_LEVELS)]
        model = timm.create_model(own_name, features_only=True, out_indices=sorted(set(layers)), **options)
    return model


@torch.no_grad()
def _problem(model: nn.Module, output_stride: int | None) -> str:
    """Return why a network cannot be an encoder; empty if it can."""
    info: Any = model.feature_info
    strides = list(info.reduction())
    if output_stride is not None and strides[-1] != output_stride:
        return f"its output stride is {strides[-1]}, not {output_stride}: leave model.output_stride out"
    # Of two sizes, neither square nor the one that it was trained with
    for rows, columns in ((2, 3), (5, 3)):
        height, width = rows * max(strides), columns * max(strides)
        maps: list[Tensor] = model.eval()(torch.zeros(1, 3, height, width))
        last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
        sizes = [tuple(each.shape[1:3] if last else each.shape[2:4]) for each in maps]
        expected = [(height // stride, width // stride) for stride in strides]
        if sizes != expected:
            return f"maps of {sizes} for an image of {(height, width)}, expected {expected}"
    model.train()
    return ""


def _resample_positions_by_matrices(model: nn.Module) -> None:
    """Let a transformer's own module call our equal function: see `resample_position_embedding`."""
    for part in model.modules():
        module = sys.modules[type(part).__module__]
        if hasattr(module, "resample_abs_pos_embed"):
            module.resample_abs_pos_embed = resample_position_embedding  # type: ignore[attr-defined]


def _attention(model: nn.Module, stride: int) -> Attention | None:
    """Return the attention over all positions of the coarsest map, as plain vision transformers have it."""
    blocks = getattr(getattr(model, "model", None), "blocks", None)
    heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None
    return None if heads is None else Attention(stride, heads)
