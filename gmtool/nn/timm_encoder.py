"""Any encoder of timm that gives a feature pyramid and takes an output stride, behind the interface of our own."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from gmtool.config import TIMM_PREFIX
from gmtool.errors import CheckpointError, ConfigError, needs_extra
from gmtool.images import IMAGENET_MEAN, IMAGENET_STD
from gmtool.nn.encoder import Features


class TimmEncoder(nn.Module):
    """A network of timm without its classifier.

    Args:
        name: `timm:` and timm's own name, for example `timm:convnext_tiny`.
        output_stride: 8 or 16.

    Raises:
        ConfigError: timm has no such network, or it gives no features at half the output stride and at it.
        MissingExtraError: timm is not installed.
    """

    def __init__(self, name: str, *, output_stride: int) -> None:
        super().__init__()
        self.model = _create(name, output_stride=output_stride, pretrained=False)
        with torch.no_grad():
            features: list[Tensor] = self.model.eval()(torch.zeros(1, 3, 64, 96))
        self.model.train()
        sizes = [tuple(each.shape[-2:]) for each in features]
        skip_size, last_size = ((64 // stride, 96 // stride) for stride in (output_stride // 2, output_stride))
        if skip_size not in sizes or sizes[-1] != last_size:
            raise ConfigError(
                f"model.encoder={name} gives features of {sizes} for an image of (64, 96); expected {skip_size} "
                f"and, last, {last_size}: take another encoder or model.output_stride"
            )
        self._skip = len(sizes) - 1 - sizes[::-1].index(skip_size)
        self.skip_channels, self.out_channels = features[self._skip].shape[1], features[-1].shape[1]
        # Images arrive with ImageNet's mean and deviation; a few networks were trained with others
        trained_with: Any = self.model.default_cfg
        mean, std = trained_with["mean"], trained_with["std"]
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
        parts = [(name, child) for name, child in self.model.named_children() if list(child.parameters())]
        return [stage for name, child in parts for stage in (child.children() if name == "blocks" else [child])]

    def forward(self, image: Tensor) -> Features:
        """Return the features of normalised images (B, 3, H, W), H and W multiples of the output stride."""
        features = self.model(image * self.scale + self.shift if self._is_shifted else image)
        return Features(skip=features[self._skip], last=features[-1])


def download_timm_weights(name: str) -> dict[str, Tensor]:
    """Return timm's published weights for an encoder, under the names of `TimmEncoder`.

    Raises:
        CheckpointError: They could not be downloaded, or there are none.
    """
    try:
        state: dict[str, Tensor] = _create(name, output_stride=8, pretrained=True).state_dict()
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
    # timm calls `stages.0.x` `stages_0.x` where it gives features
    flat = {re.sub(r"^model\.([a-z]+)\.(\d+)\.", r"model.\1_\2.", name): value for name, value in named.items()}
    return flat | named


def _create(name: str, *, output_stride: int, pretrained: bool) -> nn.Module:
    with needs_extra("timm", f"encoder {name}"):
        import timm
    own_name = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(own_name):
        close = get_close_matches(own_name, timm.list_models(), n=1, cutoff=0)
        raise ConfigError(f"model.encoder={name}: timm has no {own_name}; did you mean timm:{close[0]}?")
    try:
        model: nn.Module = timm.create_model(
            own_name, features_only=True, output_stride=output_stride, pretrained=pretrained
        )
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, AttributeError) as error:
        if pretrained:
            raise
        # Its networks refuse in five ways: an unknown argument, a bare assertion, a missing attribute, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"model.encoder={name}: timm gives it no feature pyramid at output stride {output_stride} ({reason}): "
            "take a convolutional one, such as timm:convnext_tiny or timm:mobilenetv3_large_100"
        ) from error
    return model
