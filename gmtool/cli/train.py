"""`gmtool train`: the semi-supervised pipeline on a data set of one's own or a known one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from gmtool.api import training
from gmtool.cli import signals
from gmtool.cli.options import Classes, Labels, Set, Unlabeled, Val, groups
from gmtool.errors import UsageError

EPILOG = groups(
    {
        "data": "DIR|KIND --data --classes --labels --unlabeled --val --download",
        "model": "--encoders --encoder-weights --init --teacher --recipe --config --set",
        "schedule": "--minutes --iterations --folds --seed --resume",
        "machine": "--device --compile --cache",
        "output": "--out",
    }
)


def train(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR|KIND]",
            help="Folder of a data set: its layout is recognised. Or a kind: voc, voc-aug, cityscapes, context, "
            "folder, coco, toy. Settings are chosen from the data.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; for toy it is made there.")] = None,
    labels: Labels = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="plus (best; also: probe), fixmatch, supervised, paper; with --iterations the paper's."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Time that training may take; not with --iterations.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Cross-validation: so many fits, each scored on labels kept out of it."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: a fresh one below runs/.")] = None,
    classes: Classes = None,
    unlabeled: Unlabeled = None,
    val: Val = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch PASCAL VOC, for voc-aug SBD too, into --data if missing.")
    ] = False,
    encoder_weights: Annotated[
        str | None, typer.Option(help="imagenet, none, or a .safetensors or .pth file.")
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Encoders to compare on the labels, such as resnet50 or timm:NAME."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Earlier run whose weights training starts from; classes are matched by name."),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Run whose network predicts the pseudo masks, such as a larger one.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings: a run's config.toml.")] = None,
    set_: Set = None,
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
    compile_: Annotated[
        bool | None, typer.Option("--compile", help="Translate the network with torch.compile.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="none, or ram: decode every image once, into shared memory.")
    ] = None,
) -> None:
    """Train a model with a few labeled and many unlabeled images.

    Settings: defaults, then those of the kind, then --recipe, --config, --set, and the named options.
    Several GPUs: torchrun --nproc-per-node N -m gmtool train ...
    """
    from gmtool.artifact.runs import fresh_dir
    from gmtool.console import remark, result

    # A run is resumed with its own settings
    if resume is not None:
        new_runs = {
            kind: kind,
            "--classes": classes,
            "--encoder-weights": encoder_weights,
            "--encoders": encoders,
            "--init": init,
            "--teacher": teacher,
            "--recipe": recipe,
            "--config": config,
            "--out": out,
            "--download": download,
            "--minutes": minutes,
            "--folds": folds,
        }
        for name, value in new_runs.items():
            if value:
                raise UsageError(f"{name} begins a new run, --resume goes on with one: take one of them")
        with advising_to_resume(resume):
            trained = training.resume(
                resume,
                data=data,
                labels=labels,
                unlabeled=unlabeled,
                val=val,
                settings=set_ or [],
                device=device,
                seed=seed,
                iterations=iterations,
                compile=compile_,
                cache=cache,
            )
    # A new run
    elif kind is None and data is None:
        raise UsageError(
            "train what? give the folder of a data set, or a kind: voc, voc-aug, cityscapes, context, folder, "
            "coco, toy; or --resume RUN"
        )
    else:
        out = out or fresh_dir(Path(kind or data or "run").name)
        choices: dict[str, Any] = {
            "data": data,
            "classes": classes,
            "labels": labels,
            "unlabeled": unlabeled,
            "encoder_weights": encoder_weights,
            "encoders": encoders.split(",") if encoders else (),
            "recipe": recipe,
            "config": config,
            "settings": set_ or [],
            "out": out,
            "device": device,
            "seed": seed,
            "iterations": iterations,
            "minutes": minutes,
            "compile": compile_,
            "cache": cache,
        }
        of_one_run: dict[str, Any] = {"val": val, "init": init, "teacher": teacher, "download": download}
        if folds is not None:
            from gmtool.api.cross_validation import cross_validate, refuse_with_folds

            refuse_with_folds({f"--{name}": value for name, value in of_one_run.items()})
            validated = cross_validate(kind, folds, **choices)
            result(validated.to_markdown())
            remark(f"lists, runs and table: {validated.run_dir}")
            return
        with advising_to_resume(out):
            trained = training.train(kind, **choices, **of_one_run)
    from gmtool.report.tables import to_markdown

    result(to_markdown(trained.report))
    remark(f"trained in {trained.seconds:.0f} s: {trained.run_dir}")
    if trained.late:
        remark(trained.late)
    remark("next:")
    remark(f"  gmtool export {trained.run_dir}")


@contextmanager
def advising_to_resume(run_dir: Path) -> Iterator[None]:
    """Let the line of a stopped run name `--resume` if there is a checkpoint, and else say that there is none."""
    from gmtool.artifact.runs import CHECKPOINT_DIR

    def remedy() -> str:
        if (run_dir / CHECKPOINT_DIR / "last.json").is_file():
            return f": gmtool train --resume {run_dir} goes on from the last checkpoint"
        return ": no checkpoint was saved, so there is nothing to resume"

    signals.advise(remedy)
    yield
    signals.advise("")
