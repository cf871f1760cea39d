"""Recipes: settings of the training step over those of a data set kind."""

from __future__ import annotations

from collections.abc import Mapping

from gmtool.errors import UsageError, did_you_mean
from gmtool.settings import Settings

FEW_LABELS: Settings = {
    "model.encoder": "timm:tf_efficientnet_lite2",
    "model.output_stride": 16,
    "model.decoder": "pyramid",
    "model.decoder_channels": 256,
}
"""Network for own data sets: its encoder's weights come with the installation. The paper's own with `paper`."""
PROBE: Settings = {
    "method.name": "probe",
    **FEW_LABELS,
    "optim.freeze_encoder": True,
    "probe.input_scales": (1.0, 2.0),
}
"""A small classifier of a frozen encoder's features, and rounds of self-training."""
RECIPES: Mapping[str, Settings] = {
    # Labeled images only
    "supervised": {"method.name": "supervised"},
    # GuidedMix-Net as in the paper; pairing, bound of lambda and image classifier come from the kind
    "paper": {
        "method.name": "guidedmix",
        "method.decoupling": "soft",
        "method.labeled_decoupling": True,
        "method.omega_max": 30.0,
        "method.warmup_fraction": 0.05,
        "method.ramp_fraction": 0.1,
    },
    # FixMatch for segmentation as in UniMatch, with an EMA teacher
    "fixmatch": {
        "method.name": "guidedmix",
        "method.pseudo": "direct",
        "method.teacher": "average",
        "method.view": "strong",
        "method.unlabeled_loss": "cross-entropy",
        "method.confidence": 0.95,
        "method.margin": False,
        "method.labeled_decoupling": False,
        "method.classification": False,
        "method.omega_max": 1.0,
        "method.ramp_fraction": 0.0,
        "optim.ema_decay": 0.996,
    },
    "probe": PROBE,
    # What did best of all (docs/RESULTS.md)
    "plus": PROBE,
}


def recipe(name: str) -> Settings:
    """Return the settings of a recipe.

    Raises:
        UsageError: Unknown recipe.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name}{did_you_mean(name, RECIPES)}")
    return RECIPES[name]
