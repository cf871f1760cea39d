"""`gmtool train`: the semi-supervised pipeline on a data set of one's own or a known one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmtool.cli import stop
from gmtool.errors import ConfigError, needs_extra

if TYPE_CHECKING:
    from gmtool_training.loop.run import RunResult

    from gmtool.config import DataConfig


def train(
    kind: Annotated[
        str | None,
        typer.Argument(help="Data set and its recipe: voc, voc-aug, cityscapes, context, folder, coco, toy."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; for toy it is made there.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="voc, cityscapes, context, a classes.json, or COCO annotations.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="List of the labeled images.")] = None,
    unlabeled: Annotated[
        Path | None,
        typer.Option(help="List or folder of unlabeled images; default: all that are not labeled."),
    ] = None,
    val: Annotated[Path | None, typer.Option(help="List of the validation images.")] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(help="imagenet, none, or a .safetensors or .pth file.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="supervised, paper, fixmatch or plus; default: the paper's.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings: a run's config.toml.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: a fresh one below runs/.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with this run from its last checkpoint, with its own settings. Beside it: --data if its "
            "data was moved, --iterations to train longer, --device, --cache, --set data.workers=N and other "
            "settings that no computation depends on."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile", help="Translate the network with torch.compile.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="none, or ram: decode every image once, into shared memory.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch PASCAL VOC, for voc-aug SBD too, into --data if missing.")
    ] = False,
) -> None:
    """Train a model with a few labeled and many unlabeled images.

    Settings: defaults, then those of the kind, then --recipe, --config, --set, and the named options.
    Several GPUs: torchrun --nproc-per-node N -m gmtool train ...
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
        "run.compile": compile_,
        "data.cache": cache,
    }
    if resume is not None:
        new_runs = {
            kind: kind,
            "--classes": classes,
            "--encoder-weights": encoder_weights,
            "--recipe": recipe,
            "--config": config,
            "--out": out,
            "--download": download,
        }
        refused = [name for name, value in new_runs.items() if value]
        if refused:
            raise ConfigError(f"{refused[0]} begins a new run, --resume goes on with one: take one of them")
        result = _resume_training(resume, flags, set_ or [])
    elif kind is None:
        raise ConfigError(
            "train what? known: voc, voc-aug, cityscapes, context, folder, coco, toy; or --resume RUN"
        )
    else:
        result = run_training(
            kind, flags, recipe=recipe, config_path=config, assignments=set_ or [], out=out, download=download
        )
    from gmtool.console import remark
    from gmtool.console import result as show
    from gmtool.report.tables import to_markdown

    show(to_markdown(result.report))
    remark(f"trained in {result.seconds:.0f} s: {result.run_dir}")
    remark("next:")
    remark(f"  gmtool export {result.run_dir}")


def run_training(
    kind: str,
    flags: dict[str, Any],
    *,
    recipe: str | None = None,
    config_path: Path | None,
    assignments: list[str],
    out: Path | None,
    download: bool = False,
) -> RunResult:
    """Build the configuration from all its layers, fetch the data on request, and train."""
    from gmtool.artifact.runs import fresh_dir, require_empty
    from gmtool.cli.configure import configure
    from gmtool.console import speaks
    from gmtool.data.toy import ToyConfig, generate_toy

    with needs_extra("train", "training"):
        from gmtool_training.loop.run import train as run
    if download and kind not in ("voc", "voc-aug"):
        raise ConfigError(
            f"--download fetches voc and voc-aug, not {kind}: give a folder that is there with --data"
        )
    run_dir = out or fresh_dir(kind)
    if speaks():  # another process may have begun to fill it
        require_empty(run_dir)
    config = configure(kind, flags, recipe_name=recipe, config_path=config_path, assignments=assignments)

    def prepare() -> None:
        if download:
            _download(config.data)
        if kind == "toy":
            generate_toy(config.data.root, ToyConfig())

    with _advising_to_resume(run_dir):
        return run(config, run_dir, prepare=prepare)


@contextmanager
def _advising_to_resume(run_dir: Path) -> Iterator[None]:
    """Let the line of a stopped run name `--resume`, if there is a checkpoint."""
    from gmtool.artifact.runs import CHECKPOINT_DIR

    try:
        yield
    except stop.Stopped:
        if (run_dir / CHECKPOINT_DIR / "last.json").is_file():
            stop.advise(f": gmtool train --resume {run_dir} goes on from the last checkpoint")
        raise


def _download(config: DataConfig) -> None:
    from gmtool_training.data.download import MASK_DIR, download_sbd, download_voc

    voc = download_voc(config.root)
    if config.mask_dir == MASK_DIR:
        download_sbd(config.root, voc)


def _resume_training(run_dir: Path, flags: dict[str, Any], assignments: list[str]) -> RunResult:
    from gmtool.settings import parse_assignments

    with needs_extra("train", "training"):
        from gmtool_training.loop.run import resume
    given = {name: value for name, value in flags.items() if value is not None}
    with _advising_to_resume(run_dir):
        return resume(run_dir, {**parse_assignments(assignments), **given})
