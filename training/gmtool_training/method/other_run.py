"""Teacher from another run: its network predicts the pseudo masks, its classes matched by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmtool.artifact.checkpoints import refuse_foreign_classes
from gmtool.artifact.lookup import find_checkpoint
from gmtool.classes import ClassSet
from gmtool.console import remark
from gmtool.errors import some_names
from gmtool.nn.checkpoint import load_network
from gmtool.nn.model import GuidedMixNet, Output

NO_CLASS = -1e4
"""Score of a class that the teacher does not know: its probability is 0, in half precision too."""


class TeacherOfOtherRun(nn.Module):
    """A trained network that gives the scores of another class set.

    Args:
        network: The network, with its own classes.
        names: Their names.
        wanted: The names of the classes to give scores of; at least one is known.
    """

    def __init__(self, network: GuidedMixNet, names: tuple[str, ...], wanted: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        places = torch.tensor([names.index(name) if name in names else 0 for name in wanted])
        self.places: Tensor
        self.register_buffer("places", places, persistent=False)
        unknown = torch.tensor([name not in names for name in wanted])[None, :, None, None]
        self.unknown: Tensor
        self.register_buffer("unknown", unknown, persistent=False)

    def forward(self, image: Tensor) -> Output:
        """Return the scores of normalised images (B, 3, H, W); those of the image classifier stay its own."""
        output: Output = self.network(image)
        logits = output.logits.index_select(1, self.places)
        return output._replace(logits=logits.masked_fill(self.unknown, NO_CLASS))

    def train(self, mode: bool = True) -> TeacherOfOtherRun:
        """Stay in evaluation mode."""
        return self


def load_teacher(source: str, classes: ClassSet, device: torch.device) -> TeacherOfOtherRun:
    """Return the best network of a run as a teacher, in evaluation mode.

    Args:
        source: Run folder, or a .json in its checkpoints.
        classes: Classes of the run that learns from it.
        device: Where it computes.

    Raises:
        CheckpointError: No such checkpoint, it is damaged, or none of the classes is among its own.
    """
    network, checkpoint = load_network(*find_checkpoint(source, None))
    unknown = refuse_foreign_classes(source, checkpoint.classes, classes)
    remark(
        f"teacher {source}, encoder {checkpoint.model.encoder}"
        + (f"; it does not know {some_names(unknown)}" if unknown else "")
    )
    return TeacherOfOtherRun(network, checkpoint.classes.names, classes.names).to(device)
