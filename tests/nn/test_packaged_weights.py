"""Weights that come with the installation are those of timm's networks."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from gmtool.nn.packaged_weights import PACKAGES
from gmtool.nn.timm_encoder import TimmEncoder
from gmtool.nn.weights import load_encoder_weights

REFERENCE = Path(__file__).parents[3] / "shared/data/weights"


@pytest.mark.parametrize("name", PACKAGES)
def test_imagenet_weights_need_no_network(name: str) -> None:
    encoder = TimmEncoder(name, output_stride=16)
    line = load_encoder_weights(encoder, name, "imagenet")
    loaded, wanted = line.split(": ")[1].split(" tensors")[0].split(" of ")
    assert loaded == wanted, line


@pytest.mark.parametrize("name", PACKAGES)
def test_they_are_those_of_timms_network(name: str) -> None:
    path = REFERENCE / f"{name.removeprefix('timm:')}_imagenet.safetensors"
    if not path.is_file():
        pytest.skip("needs the reference weights beside the checkout")
    encoder = TimmEncoder(name, output_stride=16)
    load_encoder_weights(encoder, name, "imagenet")
    ours, reference = encoder.state_dict(), safetensors.torch.load_file(path)
    compared = [key for key in reference if f"model.{key}" in ours]
    assert len(compared) > 200
    for key in compared:
        torch.testing.assert_close(ours[f"model.{key}"].to(reference[key].dtype), reference[key], msg=key)
