"""`gmtool demo`: the whole way once, on generated data: train, export, predict, evaluate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from gmtool.api import evaluation, exporting, prediction, training
from gmtool.cli.evaluate import show_progress
from gmtool.cli.predict import end_as, show_summary
from gmtool.cli.train import advising_to_resume
from gmtool.errors import needs_extra


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything; default: a fresh one below runs/.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps; default: the toy recipe's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
) -> None:
    """Generate toy data, train on it, export, predict and evaluate; minutes on a processor.

    The images show textured shapes; the network is a narrow one that starts from random weights.
    """
    from rich.table import Table

    from gmtool.artifact.runs import fresh_dir, require_empty
    from gmtool.console import remark, result, stdout
    from gmtool.data.toy import ToyConfig
    from gmtool.report.report import percent

    with needs_extra("all", "the demo"):
        from gmtool.cli.terminal.progress import TerminalObserver
    started = time.monotonic()
    root = require_empty(out or fresh_dir("demo"))
    data, run = root / "data", root / "run"
    remark(f"1/4 train: gmtool train toy --data {data} --out {run}")
    with advising_to_resume(run):
        trained = training.train("toy", data=data, seed=seed, device="cpu", iterations=iterations, out=run)
    remark(f"2/4 export: gmtool export {run}")
    # Cut short by --iterations, the network may know no class yet: the demo goes on all the same
    exported = exporting.export(run, allow_few_classes=iterations is not None)
    remark(f"3/4 predict: gmtool predict {data / 'JPEGImages'} --out {root / 'masks'} --model {exported.path}")
    summary = prediction.predict(
        data / "JPEGImages", out=root / "masks", model=exported, device="cpu", observer=TerminalObserver()
    )
    show_summary(summary)
    end_as(summary)
    remark(f"4/4 evaluate: gmtool evaluate --model {exported.path}")
    report = evaluation.evaluate(exported, device="cpu", out=root, progress=show_progress)

    table = Table(title="gmtool demo", show_header=False)
    toy = ToyConfig()
    agreement = min(row.agreement for row in exported.parity)
    for row in (
        ("data", f"{data}: {toy.labeled} labeled, {toy.unlabeled} unlabeled, {toy.val} validation images"),
        (
            "trained",
            f"{trained.seconds:.0f} s, mIoU {percent(trained.best_miou)} % in PyTorch",
        ),
        ("exported", f"{exported.path}, {exported.path.stat().st_size / 1e6:.1f} MB"),
        ("parity", f"{agreement:.3%} of the pixels agree with PyTorch, at worst"),
        ("predicted", f"{summary.ok} masks in {root / 'masks'}, {summary.images_per_s:.0f} images/s"),
        ("evaluated", f"mIoU {percent(report.miou)} % in ONNX Runtime"),
        ("in all", f"{time.monotonic() - started:.0f} s"),
    ):
        table.add_row(*row)
    stdout().print(table)
    result(f"report: {root / 'report.html'}")  # not in the table, which cuts long paths
    remark("try next:")
    remark(f"  gmtool predict YOUR_IMAGES --out masks/ --model {exported.path}")
    remark(
        "  gmtool train folder --data DIR --labels LIST   (images/{train,val}, masks/{train,val}, classes.json)"
    )
    remark(f"  tensorboard --logdir {run}")
