"""`gmtool train`: the semi-supervised pipeline on a data set of one's own or a known one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmtool.errors import needs_extra

if TYPE_CHECKING:
    from gmtool_training.run import RunResult


def train(
    kind: Annotated[
        str, typer.Argument(help="Kind of data set and its recipe: voc, cityscapes, context, folder, toy.")
    ],
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; for toy it is made there.")] = None,
    classes: Annotated[str | None, typer.Option(help="voc, cityscapes, context, or a classes.json file.")] = None,
    labels: Annotated[Path | None, typer.Option(help="List of the labeled images.")] = None,
    unlabeled: Annotated[
        Path | None,
        typer.Option(help="List or folder of unlabeled images; default: the rest of the training set."),
    ] = None,
    val: Annotated[Path | None, typer.Option(help="List of the validation images.")] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(help="imagenet, none, or a .safetensors or .pth file.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings: a run's config.toml.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: a fresh one below runs/.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
) -> None:
    """Train a model with a few labeled and many unlabeled images.

    Settings: defaults, then the recipe of the kind, then --config, then --set, then the named options.
    """
    flags = {
        "data.root": data,
        "data.classes": classes,
        "data.labeled": labels,
        "data.unlabeled": unlabeled,
        "data.val": val,
        "model.encoder_weights": encoder_weights,
        "run.device": device,
        "run.seed": seed,
        "optim.iterations": iterations,
    }
    result = run_training(kind, flags, config_path=config, assignments=set_ or [], out=out)
    from gmtool.console import remark
    from gmtool.console import result as show

    show(result.report.to_markdown())
    remark(f"trained in {result.seconds:.0f} s: {result.run_dir}")
    remark("next:")
    remark(f"  gmtool export {result.run_dir}")


def run_training(
    kind: str,
    flags: dict[str, Any],
    *,
    config_path: Path | None,
    assignments: list[str],
    out: Path | None,
) -> RunResult:
    """Build the configuration from all its layers, and train."""
    from gmtool.console import remark
    from gmtool.runs import fresh_dir, require_empty
    from gmtool.settings import build_config, load_toml, parse_assignments
    from gmtool.toy import ToyConfig, generate_toy

    with needs_extra("train", "training"):
        from gmtool_training.presets import preset
        from gmtool_training.run import train as run
    layers = [
        preset(kind),
        load_toml(config_path) if config_path else {},
        parse_assignments(assignments),
        {name: value for name, value in flags.items() if value is not None},
    ]
    run_dir = require_empty(out or fresh_dir(kind))
    if kind == "folder":
        layers.insert(1, _own_classes(layers))
    if kind == "toy":
        layers.append(_toy_files(layers))
    settings = build_config(*layers)
    if kind == "toy":
        generate_toy(settings.data.root, ToyConfig())
    try:
        return run(settings, run_dir)
    except KeyboardInterrupt:
        remark(f"interrupted; what was saved at the last validation is in {run_dir}")
        raise


def _toy_files(layers: list[Any]) -> dict[str, Any]:
    """Return the settings that name the files of the toy data, where nothing else was asked for."""
    named = {name: value for layer in layers for name, value in layer.items()}
    root = Path(named.get("data.root", "runs/toy-data"))
    files = {
        "data.root": root,
        "data.classes": str(root / "classes.json"),
        "data.labeled": root / "splits" / "labeled.txt",
    }
    return {name: value for name, value in files.items() if name not in named}


def _own_classes(layers: list[Any]) -> dict[str, Any]:
    """Return the setting that names a `classes.json` in the data set's folder, if there is one."""
    roots = [layer["data.root"] for layer in layers if "data.root" in layer]
    path = Path(roots[-1]) / "classes.json" if roots else None
    return {"data.classes": str(path)} if path and path.is_file() else {}
