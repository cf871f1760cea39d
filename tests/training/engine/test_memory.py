"""Too little memory for a step: one line that says what makes it smaller."""

import pytest
import torch
from gmtool_training.engine.memory import explained_memory

from gmtool.errors import BackendMemoryError
from gmtool.settings import Settings, build_config


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "the GPU"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "this machine"),
    ],
)
def test_what_makes_a_step_smaller_is_said(error: Exception, place: str, toy_settings: Settings) -> None:
    config = build_config(toy_settings, {"data.crop_px": 320})
    expected = (
        rf"^{place} has too little memory for a step of 8 crops of 320x320 pixels in 32-true: "
        r"--set optim.accumulation=2 .*, or --set run.activation_checkpointing=true .*, or "
        r"--set data.crop_px=240 \(activations of 56% of the pixels\)$"
    )
    with pytest.raises(BackendMemoryError, match=expected), explained_memory(config):
        raise error


def test_what_cannot_be_made_smaller_is_not_suggested(toy_settings: Settings) -> None:
    config = build_config(toy_settings, {"run.activation_checkpointing": True, "optim.accumulation": 2})
    with pytest.raises(BackendMemoryError) as caught, explained_memory(config):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "accumulation" not in str(caught.value)
    assert "activation_checkpointing" not in str(caught.value)


def test_fewer_kept_crops_are_suggested(toy_settings: Settings) -> None:
    changes = {"data.kept_crops": 8, "method.name": "supervised", "optim.freeze_encoder": True}
    config = build_config(toy_settings, changes)
    with pytest.raises(BackendMemoryError, match="--set data.kept_crops=4 "), explained_memory(config):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_other_errors_stay(toy_settings: Settings) -> None:
    with pytest.raises(RuntimeError, match="^shapes$"), explained_memory(build_config(toy_settings)):
        raise RuntimeError("shapes")
