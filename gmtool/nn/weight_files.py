"""State dicts of weight files: what training programs wrap around an encoder's tensors is taken off."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gmtool.artifact.checkpoints import read_checkpoint
from gmtool.artifact.lookup import find_checkpoint
from gmtool.artifact.runs import CHECKPOINT_DIR
from gmtool.errors import CheckpointError

State = dict[str, Tensor]
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which programs store the network beside optimiser and arguments."""
PREFIXES = ("module.", "model.", "_orig_mod.", "encoder_q.", "base_encoder.", "backbone.", "encoder.")
"""Names of an encoder within a network: of parallel training, mmsegmentation, MoCo, gmtool."""


def read_weights(path: Path) -> State:
    """Return the tensors of a .safetensors or .pth file, or of a run's best checkpoint.

    Raises:
        CheckpointError: The file does not exist, cannot be read, or has no state dict.
    """
    if path.is_dir() or path.suffix == ".json":
        run_dir, name = find_checkpoint(path, None)
        path = run_dir / CHECKPOINT_DIR / read_checkpoint(run_dir, name).weights
    if not path.is_file():
        raise CheckpointError(
            f"encoder weights {path}: no such file; expected imagenet, none, a file or a run folder"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([Namespace]):  # arguments that many programs save beside
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises whatever a damaged file leads it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "Weights only load failed" in reason:
            reason = "damaged, or Python objects beside tensors: save its state dict alone with torch.save"
        raise CheckpointError(f"encoder weights {path}: cannot be read: {reason}") from error
    return _state_of(state, path)


def _state_of(value: Any, path: Path) -> State:
    if isinstance(value, dict):
        inner = next((value[key] for key in WRAPPERS if isinstance(value.get(key), dict)), value)
        if inner and all(isinstance(each, Tensor) for each in inner.values()):
            return dict(inner)
    names = ", ".join(map(str, list(value)[:3])) if isinstance(value, dict) else ""
    found = f"a dict of {names}" if names else f"a {type(value).__name__}"
    raise CheckpointError(
        f"encoder weights {path}: expected a state dict of tensors, alone or as one of {', '.join(WRAPPERS)}, "
        f"got {found}: save the state dict alone"
    )


def unwrapped(state: State, fit: Callable[[State], int]) -> tuple[State, str]:
    """Return the tensors under the prefix with which most fit, and that prefix, such as `module.backbone.`.

    Args:
        state: All tensors of a file.
        fit: Number of tensors that fit the encoder.
    """
    best, found, most = state, "", fit(state)
    for candidate, prefix in _below(state, ""):
        count = fit(candidate)
        if count > most:
            best, found, most = candidate, prefix, count
    return best, found


def _below(state: State, before: str) -> Iterator[tuple[State, str]]:
    for prefix in PREFIXES:
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner:
            yield inner, before + prefix
            yield from _below(inner, before + prefix)
