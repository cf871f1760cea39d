"""Start a network from an earlier run: tensors of the same name and shape, classes by their names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmtool.artifact.checkpoints import Checkpoint
from gmtool.artifact.lookup import find_checkpoint
from gmtool.classes import ClassSet
from gmtool.config import ModelConfig
from gmtool.errors import CheckpointError, some_names
from gmtool.nn.checkpoint import load_network
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.weights import load_encoder_weights


def load_starting_weights(network: GuidedMixNet, model: ModelConfig, classes: ClassSet) -> str:
    """Fill a new network from `model.init`, or its encoder alone from `model.encoder_weights`.

    Returns:
        One line that says what was loaded and what was not.

    Raises:
        CheckpointError: The weights cannot be had or read, or do not fit.
    """
    if model.init is not None:
        return load_initial_weights(network, classes, model.init)
    return load_encoder_weights(network.encoder, model.encoder, model.encoder_weights)


def load_initial_weights(network: GuidedMixNet, classes: ClassSet, source: str) -> str:
    """Fill a network with the weights of an earlier run.

    The scores of a class are those of the earlier class of the same name, whatever its index; new classes keep
    their random start.

    Args:
        network: The network, already initialised.
        classes: Its classes.
        source: Run folder, for its best checkpoint, or a .json in its checkpoints.

    Returns:
        One line that says what was loaded and what was not.

    Raises:
        CheckpointError: No such checkpoint, it is damaged, or its encoder is another one.
    """
    earlier, checkpoint = load_network(*find_checkpoint(source, None))
    _refuse_other_encoder(network, earlier, checkpoint, source)
    # Tensors with a row a class
    rows = {
        **_of_modules(network, network.class_layers, _places(classes.names, checkpoint.classes.names)),
        **_of_modules(
            network, [network.image_classifier], _places(_foreground(classes), _foreground(checkpoint.classes))
        ),
    }
    wanted, saved = network.state_dict(), earlier.state_dict()
    loaded = 0
    with torch.no_grad():
        for name, value in wanted.items():
            if name in saved and _fits(value, saved[name], by_class=name in rows):
                _copy(value, saved[name], rows.get(name))
                loaded += 1
    new = [name for name in classes.names if name not in checkpoint.classes.names]
    line = f"starts from {source}: {loaded} of {len(wanted)} tensors"
    return line + (f"; new classes with a random start: {some_names(new)}" if new else "; all classes known")


def _refuse_other_encoder(
    network: GuidedMixNet, earlier: GuidedMixNet, checkpoint: Checkpoint, source: str
) -> None:
    ours, theirs = (
        {name: value.shape for name, value in each.encoder.state_dict().items()} for each in (network, earlier)
    )
    if ours != theirs:
        raise CheckpointError(
            f"--init {source}: its encoder is {checkpoint.model.encoder}, not that of this run: leave "
            "model.encoder out, or give a run with the same encoder"
        )


def _foreground(classes: ClassSet) -> tuple[str, ...]:
    return tuple(classes.names[index] for index in classes.foreground)


def _places(names: tuple[str, ...], earlier: tuple[str, ...]) -> dict[int, int]:
    """Return the earlier index of each class that was there, by its index now."""
    return {index: earlier.index(name) for index, name in enumerate(names) if name in earlier}


def _of_modules(network: nn.Module, modules: list[nn.Module], places: dict[int, int]) -> dict[str, dict[int, int]]:
    """Return `places` by the names of the modules' tensors in the state of the network."""
    found = [name for name, module in network.named_modules() if any(module is each for each in modules)]
    return {name: places for name in network.state_dict() if name.rpartition(".")[0] in found}


def _fits(value: Tensor, saved: Tensor, *, by_class: bool) -> bool:
    return value.shape[1:] == saved.shape[1:] if by_class else value.shape == saved.shape


def _copy(value: Tensor, saved: Tensor, places: dict[int, int] | None) -> None:
    if places is None:
        value.copy_(saved)
        return
    for index, earlier in places.items():
        value[index] = saved[earlier]
