"""Weights of another run as the start of a new one."""

from __future__ import annotations

from pathlib import Path

from gmtool.artifact.lookup import find_checkpoint
from gmtool.errors import CheckpointError, some_names
from gmtool.nn.checkpoint import load_network
from gmtool.nn.model import GuidedMixNet
from gmtool.report.report import percent


def load_initial_weights(network: GuidedMixNet, source: Path) -> str:
    """Copy the weights of a run that fit into a network; the others keep their random values.

    Args:
        network: Network of the new run, which may have other classes.
        source: Run folder, for its best checkpoint; or a .json in its checkpoints.

    Returns:
        One line for a person: where the weights come from, and which tensors do not fit.

    Raises:
        CheckpointError: No such run, damaged weights, or another encoder.
    """
    run_dir, name = find_checkpoint(source, None)
    other, checkpoint = load_network(run_dir, name)
    target, found = network.state_dict(), other.state_dict()
    fitting = {key: value for key, value in found.items() if key in target and target[key].shape == value.shape}
    missing = [key for key in target if key not in fitting]
    if any(key.startswith("encoder.") for key in missing):
        raise CheckpointError(
            f"--init {source}: its encoder {checkpoint.model.encoder} does not fit: train with "
            f"--set model.encoder={checkpoint.model.encoder}"
        )
    network.load_state_dict(target | fitting)
    line = (
        f"weights: checkpoint {name} of {run_dir}, after {checkpoint.iteration} iterations, "
        f"mIoU {percent(checkpoint.miou)} %"
    )
    return f"{line}; with random values, since they do not fit: {some_names(missing)}" if missing else line
