"""Pretrained encoder weights: torchvision's by download, or a file; what did not fit is always said."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import safetensors.torch
import torch
from torch import Tensor
from torchvision.models import get_model_weights

from gmtool.artifact.runs import CHECKPOINT_DIR
from gmtool.errors import CheckpointError
from gmtool.files import sha256_of_file
from gmtool.nn.encoder import Encoder
from gmtool.nn.packaged_weights import in_timms_names, packaged_file
from gmtool.nn.timm_encoder import TimmEncoder, as_encoder_names, download_timm_weights


def load_encoder_weights(encoder: Encoder | TimmEncoder, name: str, source: str) -> str:
    """Fill an encoder with pretrained weights.

    Args:
        encoder: The encoder, already initialised.
        name: Its name.
        source: `imagenet`, `none`, or a .safetensors or .pth file with torchvision's names.

    Returns:
        One line that says what was loaded and what was not.

    Raises:
        CheckpointError: The weights cannot be had or read, or fewer than half of the tensors fit.
    """
    if source == "none":
        return f"encoder {name}: starts from random weights"
    if isinstance(encoder, TimmEncoder):
        packaged = packaged_file(name)
        if source != "imagenet":
            weights = as_encoder_names(_read(Path(source)))
        elif packaged is not None:
            weights = in_timms_names(name, _read(packaged))
        else:
            weights = download_timm_weights(name)
    else:
        weights = _download(name) if source == "imagenet" else _read(Path(source))
    return _fill(encoder, weights, where=f"encoder weights {source}")


def _download(name: str) -> dict[str, Tensor]:
    if name == "toy":
        raise CheckpointError(
            "encoder toy has no ImageNet weights: --encoder-weights none, or another --set model.encoder=..."
        )
    # The first published weights: those that the paper's results start from
    url = get_model_weights(name)["IMAGENET1K_V1"].url
    # Not by its own `get_state_dict`: that unpickles whatever lies in the cache, and prints to stdout
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(url).name
    sha256_start = path.stem.rpartition("-")[2]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), sha256_start, progress=False)
        except Exception as error:  # urllib, sockets, http and file systems raise a dozen types
            raise CheckpointError(
                f"encoder weights: {url} could not be downloaded ({error}): "
                "give a file with --encoder-weights FILE, or --encoder-weights none"
            ) from error
    if path.is_file() and not sha256_of_file(path).startswith(sha256_start):
        raise CheckpointError(
            f"encoder weights {path}: its sha256 does not begin with {sha256_start}, as its name says: it is "
            "damaged or another file: delete it, and it is downloaded again"
        )
    return _read(path)


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir() or path.suffix == ".json":
        raise CheckpointError(
            f"encoder weights {path}: expected a file of weights: "
            f"of a run, take RUN/{CHECKPOINT_DIR}/weights-*.safetensors"
        )
    if not path.is_file():
        raise CheckpointError(f"encoder weights {path}: no such file; expected imagenet, none or a file")
    try:
        if path.suffix == ".safetensors":
            return _of_encoder(safetensors.torch.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises whatever a damaged file leads it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "Weights only load failed" in reason:
            reason = "damaged, or Python objects beside tensors: save its state dict alone with torch.save"
        raise CheckpointError(f"encoder weights {path}: cannot be read: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        names = ", ".join(map(str, list(state)[:3])) if isinstance(state, dict) else ""
        found = f"a dict of {names}" if names else f"a {type(state).__name__}"
        raise CheckpointError(
            f"encoder weights {path}: expected a flat state dict of tensors, got {found}: "
            "save the state dict alone"
        )
    return _of_encoder(state)


def _of_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors of a whole network that gmtool trained; other state dicts as they are."""
    prefix = "encoder."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return own or state


def _fill(encoder: Encoder | TimmEncoder, weights: dict[str, Tensor], *, where: str) -> str:
    wanted = {
        name: value for name, value in encoder.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    missing = [name for name in wanted if name not in weights]
    misfits = [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape]
    fitting = [name for name in wanted if name not in missing and name not in misfits]
    line = f"{where}: {len(fitting)} of {len(wanted)} tensors loaded"
    if missing:
        line += f"; {len(missing)} missing ({_summary(missing)}) keep their random start"
    if misfits:
        line += f"; {len(misfits)} of another shape ({_summary(misfits)}) keep their random start"
    if len(fitting) * 2 < len(wanted):
        raise CheckpointError(
            f"{line}: more than half do not fit (the file has {_summary(list(weights))}): "
            "are they of another encoder?"
        )
    encoder.load_state_dict({name: weights[name].float() for name in fitting}, strict=False)
    return line


def _summary(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
