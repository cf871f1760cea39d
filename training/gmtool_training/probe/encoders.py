"""Compare frozen encoders by a linear classifier on labeled images kept out of its fit, and take the best."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from gmtool.artifact.run_record import Candidate, Choice
from gmtool.classes import ClassSet
from gmtool.config import ModelConfig, TrainConfig
from gmtool.console import remark
from gmtool.data.datasets import TrainingData
from gmtool.errors import CheckpointError, ConfigError
from gmtool.nn.checkpoint import build_network
from gmtool.nn.model import GuidedMixNet
from gmtool.nn.weights import load_encoder_weights
from gmtool_training.data.cache import Readers
from gmtool_training.probe.input_scale import best_scale, scores_at_scales

COLUMNS = ("mIoU %", "input scale", "ms an image", "million parameters")
"""Figures of an encoder in the record of the run."""


@dataclass(frozen=True)
class EncoderScore:
    """An encoder and how its features do."""

    model: ModelConfig
    """With its best input scale and the output stride that it takes."""
    network: GuidedMixNet
    miou: float
    """Mean IoU on labeled images kept out, in [0, 1]."""
    seconds_an_image: float

    @property
    def figures(self) -> tuple[float, float, float, float]:
        """Return mIoU in per cent, input scale, milliseconds an image, million parameters."""
        millions = sum(each.numel() for each in self.network.encoder.parameters()) / 1e6
        return 100 * self.miou, self.model.input_scale, 1000 * self.seconds_an_image, millions

    @property
    def row(self) -> str:
        """Return its row of the table."""
        miou, scale, milliseconds, millions = self.figures
        license = self.network.encoder.license or "not stated"
        return (
            f"| {self.model.encoder} | {miou:.1f} | {scale:g} | {milliseconds:.0f} | {millions:.1f} | {license} |"
        )


def choose_encoder(
    config: TrainConfig, data: TrainingData, classes: ClassSet, read: Readers, device: torch.device
) -> tuple[GuidedMixNet, ModelConfig, str, Choice]:
    """Return the network with the best of `probe.encoders`, its settings, and a table of all: text, figures.

    Raises:
        CheckpointError: The weights of none can be had.
        ConfigError: An encoder does not exist, or gives no feature maps.
    """
    lines = [
        "| encoder | mIoU % on labels kept out | input scale | ms an image | million parameters | licence |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for line in lines:
        remark(line)
    best: EncoderScore | None = None
    figures: dict[str, tuple[float | None, ...]] = {}
    for name in config.probe.encoders:
        try:
            scored = _score(replace(config.model, encoder=name), config, data, classes, read, device)
        except CheckpointError as error:  # one that cannot be had does not end the comparison
            lines.append(f"| {name} | left out: {error} | | | | |")
            figures[name] = (None,) * len(COLUMNS)
        else:
            lines.append(scored.row)
            figures[name] = tuple(round(figure, 2) for figure in scored.figures)
            best = scored if best is None or scored.miou > best.miou else best
        remark(lines[-1])
    if best is None:
        raise CheckpointError("the weights of none of the encoders can be had: see the lines above")
    remark(f"encoder {best.model.encoder}, input scale {best.model.input_scale:g}")
    candidates = tuple(Candidate(name, row, name == best.model.encoder) for name, row in figures.items())
    choice = Choice("encoder", "the best score of a linear classifier", COLUMNS, candidates)
    return best.network, best.model, "\n".join(lines) + "\n", choice


def _score(
    model: ModelConfig,
    config: TrainConfig,
    data: TrainingData,
    classes: ClassSet,
    read: Readers,
    device: torch.device,
) -> EncoderScore:
    network, model = _network(model, classes)
    load_encoder_weights(network.encoder, model.encoder, model.encoder_weights)
    network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = scores_at_scales(network, config.probe.input_scales, config, data, classes, read)
    scale = best_scale({scale: score.kind.confusions for scale, score in found.items()})
    model = replace(model, input_scale=scale)
    chosen = with_encoder_of(network, model, classes)
    return EncoderScore(model, chosen, found[scale].kind.miou, found[scale].seconds_an_image)


def with_encoder_of(network: GuidedMixNet, model: ModelConfig, classes: ClassSet) -> GuidedMixNet:
    """Return a new network with the encoder of another, which scales its images as `model` says."""
    device = next(network.parameters()).device
    new = build_network(model, classes)
    new.encoder = network.encoder
    new.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return new


def _network(model: ModelConfig, classes: ClassSet) -> tuple[GuidedMixNet, ModelConfig]:
    """Return a network, with the encoder's own output stride if it does not take the one of the settings."""
    try:
        return build_network(model, classes), model
    except ConfigError:
        model = replace(model, output_stride=None)
        return build_network(model, classes), model
