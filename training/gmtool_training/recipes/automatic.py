"""Settings chosen from the data: what `gmtool train DIR` takes where nothing else is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gmtool.config import INPUT_SCALES, TrainConfig
from gmtool.data.datasets import FEWEST_LABELED, load_training_data
from gmtool.errors import ConfigError
from gmtool.images import displayed_size, open_image
from gmtool.nn.packaged_weights import packaged_file
from gmtool.settings import Settings
from gmtool_training.recipes.recipes import recipe

LOOKED_AT = 64
"""Labeled images whose size is read."""
SMALLEST_PX, LARGEST_PX = 250, 900
"""Side of a square with as many pixels as an image has for the encoder, after `model.input_scale`: candidates lie
in between. Smaller ones show too little, larger ones take too long on a processor."""
DEFAULT_MINUTES = 30.0
"""Time that a run takes at most if none is asked for; few labels need less."""


@dataclass(frozen=True)
class Chosen:
    """Settings and why they were chosen."""

    settings: Settings
    reasons: tuple[str, ...]
    """Lines for a person."""


def choose_settings(config: TrainConfig, *, minutes: float | None) -> Chosen:
    """Choose recipe, input scales and time from the data.

    Args:
        config: The recipe `probe` with what was asked for, and where the data is.
        minutes: Time that training may take; None for `DEFAULT_MINUTES`.

    Raises:
        DataError: The data cannot be found.
    """
    found = load_training_data(config.data)
    count = len(found.labeled.samples)
    if count < FEWEST_LABELED:
        raise ConfigError(
            f"{count} labeled images in {found.labeled.name}: settings are chosen by labels that are kept out of "
            f"a fit, which takes at least {FEWEST_LABELED}: label more, or give --recipe supervised"
        )
    step = max(1, len(found.labeled.samples) // LOOKED_AT)
    sizes = [displayed_size(open_image(sample.image_path)) for sample in found.labeled.samples[::step]]
    height, width = (int(median(side)) for side in zip(*sizes, strict=True))
    scales = input_scales(height, width)
    allowed = DEFAULT_MINUTES if minutes is None else minutes
    settings: Settings = {**recipe("probe"), "probe.input_scales": scales, "probe.minutes": allowed}
    if config.model.init is not None:
        scales = (config.model.input_scale,)
    reasons = (
        f"recipe probe: a small classifier of frozen features, for {len(found.labeled.samples)} labeled images",
        _encoder_reason(config),
        f"input scale: {_listed(scales)} for images of about {width}x{height}"
        + ("; labeled images kept out of the fit decide" if len(scales) > 1 else ""),
        "class weights: (share of the labeled pixels) ** -0.5, so that rare classes count",
        f"unlabeled images: {len(found.unlabeled.samples)} ({found.unlabeled.name}), used if labeled images "
        "kept out of the fit gain by them",
        f"time: about {allowed:g} minutes on a machine that does nothing else"
        + ("" if minutes is not None else "; --minutes N changes that"),
    )
    return Chosen(settings, reasons)


def _encoder_reason(config: TrainConfig) -> str:
    if config.probe.encoders:
        return f"encoder: the best of {', '.join(config.probe.encoders)} on labeled images kept out, frozen"
    if config.model.init is not None:
        return f"encoder {config.model.encoder}, frozen, of {config.model.init}"
    if packaged_file(config.model.encoder) is not None and config.model.encoder_weights == "imagenet":
        return f"encoder {config.model.encoder}, frozen: its ImageNet weights come with the installation"
    return f"encoder {config.model.encoder}, frozen: weights {config.model.encoder_weights}"


def input_scales(height: int, width: int) -> tuple[float, ...]:
    """Return the candidates for `model.input_scale` for images of a size, pixels; at least one."""
    side = (height * width) ** 0.5
    fitting = tuple(scale for scale in INPUT_SCALES if SMALLEST_PX <= scale * side <= LARGEST_PX)
    middle = (SMALLEST_PX * LARGEST_PX) ** 0.5
    return fitting or (min(INPUT_SCALES, key=lambda scale: max(scale * side / middle, middle / (scale * side))),)


def _listed(scales: Sequence[float]) -> str:
    return " or ".join(f"{scale:g}" for scale in scales)
