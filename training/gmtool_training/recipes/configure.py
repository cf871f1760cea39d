"""Build a run's configuration from its layers of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from gmtool.artifact.checkpoints import read_checkpoint
from gmtool.artifact.lookup import find_checkpoint
from gmtool.classes import BUILT_IN
from gmtool.config import DataConfig, TrainConfig
from gmtool.errors import ConfigError
from gmtool.settings import Settings, as_settings, build_config, load_toml
from gmtool_training.recipes.presets import preset
from gmtool_training.recipes.recipes import recipe


def configure(
    kind: str,
    flags: Mapping[str, Any],
    *,
    recipe_name: str | None = None,
    config_path: Path | None = None,
    settings: Settings | Sequence[str] = (),
    chosen: Settings | None = None,
    network: Settings | None = None,
) -> TrainConfig:
    """Return defaults < settings of the kind < `--recipe` < network of `--init` < `--config` < `--set` < flags.

    A flag that is None was not given.
    `network` is that of a recipe that names none.
    `chosen` takes the place of a recipe: settings that `choose_settings` found in the data.

    Raises:
        ConfigError: The kind or a setting does not exist, or a value is wrong.
    """
    asked = {
        **(load_toml(config_path) if config_path else {}),
        **as_settings(settings),
        **{name: value for name, value in flags.items() if value is not None},
    }
    method = recipe(recipe_name) if recipe_name else chosen or {}
    earlier = _earlier_network(asked["model.init"], method) if "model.init" in asked else {}
    return build_config(preset(kind), network or {}, _own_files(kind, asked), method, earlier, asked)


def _earlier_network(init: str, method: Settings) -> Settings:
    """Return the settings of the network of an earlier run, as far as a recipe can take them."""
    run_dir, name = find_checkpoint(init, None)
    model = read_checkpoint(run_dir, name).model
    shared = {"model.encoder": model.encoder, "model.output_stride": model.output_stride}
    decoder = {
        "model.decoder": model.decoder,
        "model.decoder_channels": model.decoder_channels,
        "model.non_local_1": model.non_local_1,
        "model.non_local_2": model.non_local_2,
    }
    if method.get("method.name") != "probe":
        return {**shared, **decoder, "model.input_scale": model.input_scale}
    # The probe fits a decoder of its own; the scale was chosen before
    return {**shared, "model.input_scale": model.input_scale, "probe.input_scales": (model.input_scale,)}


def _own_files(kind: str, asked: Settings) -> Settings:
    """Return the settings that name what a data set of this kind brings along."""
    if kind == "toy":
        root = Path(asked.get("data.root", "runs/toy-data"))
        return {
            "data.root": root,
            "data.classes": str(root / "classes.json"),
            "data.labeled": root / "splits" / "labeled.txt",
        }
    if kind not in ("folder", "coco"):
        return {}
    name = (
        "classes.json" if kind == "folder" else asked.get("data.train_annotations", DataConfig.train_annotations)
    )
    classes = Path(asked.get("data.root", ".")) / name
    if classes.is_file():
        return {"data.classes": str(classes)}
    if kind == "folder" and "data.root" in asked and "data.classes" not in asked:
        raise ConfigError(
            f"{classes} does not exist: it names the classes in the order of their labels, such as "
            '{"names": ["background", "road", "car"]} for the labels 0, 1 and 2; write it, let gmtool data init '
            f"{quote(str(asked['data.root']))} propose it from the masks, or give --classes FILE (or one of "
            f"{', '.join(BUILT_IN)})"
        )
    return {}
