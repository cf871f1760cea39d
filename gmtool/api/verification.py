"""Verify an exported model on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gmtool.api.arguments import Device, PathLike, as_path
from gmtool.errors import needs_extra

if TYPE_CHECKING:
    from gmtool_serving.verification.run import Verification


def verify(
    model: PathLike | None = None,
    *,
    against: PathLike | None = None,
    device: Device = "auto",
    threads: int = 0,
    trust: bool = False,
) -> Verification:
    """Run a model on the images that were kept at its export, and compare its masks with PyTorch's.

    Args:
        model: Exported model, or run folder; None for the newest model below `runs/`.
        against: Verification set; by default the file beside the model.
        device: `auto` takes CUDA where it works.
        threads: Processor threads of an ONNX model; 0 for one a core.
        trust: Run a model that was changed after its export, or a plan without a sidecar.

    Returns:
        The share of equal pixels of each shape; `passes` says whether all suffice.

    Raises:
        ArtifactError: Model or set is missing, damaged, or of another model.
        BackendError: Device unavailable, or the runtime failed.
    """
    from gmtool.artifact.lookup import find_model
    from gmtool.artifact.verification import read_verification

    path = find_model(model)
    beside = set_of(path, against)
    with needs_extra("serve", "running a model"):
        from gmtool_serving.backends.opening import open_backend
        from gmtool_serving.verification.run import verify as run
    given = read_verification(beside)
    return run(open_backend(path, device=device, threads=threads, trust=trust), given, where=beside)


def verification_script(model: PathLike | None = None, *, against: PathLike | None = None) -> str:
    """Return a Python program that verifies a model without gmtool; it needs numpy, and onnxruntime or tensorrt.

    Args:
        model: As in `verify`.
        against: As in `verify`.

    Raises:
        ArtifactError: The set is missing or damaged.
    """
    from gmtool.artifact.lookup import find_model
    from gmtool.artifact.verification import read_verification

    beside = set_of(find_model(model), against)
    read_verification(beside)
    from gmtool_serving.verification.script import verification_script as script

    return script(beside.read_bytes())


def set_of(model: Path, against: PathLike | None) -> Path:
    """Return the file of a model's verification set.

    Raises:
        ArtifactError: The model does not exist.
    """
    from gmtool.artifact.verification import path_beside
    from gmtool.errors import ArtifactError

    if not model.is_file():
        raise ArtifactError(f"model {model}: no such file; expected a model that gmtool export wrote")
    return as_path(against) or path_beside(model)
