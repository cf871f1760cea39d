"""Give torchvision's MobileNetV2 weights the names of timm's `mobilenetv2_100`: the same network, other names.

    uv run python benchmarks/ssl/mobilenet_weights.py mobilenet_v2.safetensors mobilenetv2_100.safetensors

Both list the same tensors in the same order. That the two networks then compute the same is checked.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import mobilenet_v2


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of torchvision's feature extractor under timm's names."""
    theirs = mobilenet_v2(weights=None).features.eval()
    ours = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=0, global_pool="").eval()
    values = {
        name: weights[f"features.{name}"].float() for name in theirs.state_dict() if "num_batches" not in name
    }
    names = [name for name in ours.state_dict() if "num_batches" not in name]
    given = dict(zip(names, values.values(), strict=True))
    theirs.load_state_dict(values, strict=False)
    ours.load_state_dict(given, strict=False)
    image = torch.randn(1, 3, 97, 129, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image))
    return given


if __name__ == "__main__":
    source, target = (Path(argument) for argument in sys.argv[1:])
    save_file(renamed(load_file(source)), target)
    print(f"{target}: checked against torchvision's network")
