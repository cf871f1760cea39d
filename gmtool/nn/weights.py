"""Pretrained encoder weights: torchvision's by download, or a file; what did not fit is always said."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from gmtool.errors import CheckpointError
from gmtool.files import sha256_of_file
from gmtool.nn.encoder import Encoder
from gmtool.nn.packaged_weights import in_timms_names, packaged_file
from gmtool.nn.timm_encoder import TimmEncoder, as_encoder_names, download_timm_weights
from gmtool.nn.weight_files import read_weights, unwrapped


def load_encoder_weights(encoder: Encoder | TimmEncoder, name: str, source: str) -> str:
    """Fill an encoder with pretrained weights.

    Args:
        encoder: The encoder, already initialised.
        name: Its name.
        source: `imagenet`, `none`, a run folder, or a .safetensors or .pth file with torchvision's names, also
            behind a prefix.

    Returns:
        One line that says what was loaded and what was not.

    Raises:
        CheckpointError: The weights cannot be had or read, or fewer than half of the tensors fit.
    """
    if source == "none":
        return f"encoder {name}: starts from random weights"
    prefix = ""
    if source != "imagenet":
        weights, prefix = _of_file(encoder, Path(source))
    elif not isinstance(encoder, TimmEncoder):
        weights = _download(name)
    else:
        packaged = packaged_file(name)
        weights = download_timm_weights(name) if packaged is None else in_timms_names(name, read_weights(packaged))
    return _fill(encoder, weights, where=f"encoder weights {source}{f' ({prefix}*)' if prefix else ''}")


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
    return read_weights(path)


def _of_file(encoder: Encoder | TimmEncoder, path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the encoder's tensors in a file, and the prefix that their names have there."""
    convert = as_encoder_names if isinstance(encoder, TimmEncoder) else dict
    wanted = encoder.state_dict()

    def fit(state: dict[str, Tensor]) -> int:
        found = convert(state)
        return sum(name in found and found[name].shape == value.shape for name, value in wanted.items())

    state, prefix = unwrapped(read_weights(path), fit)
    return convert(state), prefix


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
