"""`gmtool demo`: the whole way once, on generated data: train, export, predict, evaluate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from gmtool.cli.predict import run_prediction
from gmtool.cli.scoring import run_task, score_model, write_report
from gmtool.cli.train import run_training
from gmtool.errors import needs_extra


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything; default: a fresh one below runs/.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Optimiser steps; default: the toy recipe's.")] = None,
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
        from gmtool_export.run import ExportOptions, export_run
        from gmtool_serving.inputs.collect import collect_images
        from gmtool_serving.pipeline.run import PredictOptions
    started = time.monotonic()
    root = require_empty(out or fresh_dir("demo"))
    data, run = root / "data", root / "run"
    flags = {"data.root": data, "run.seed": seed, "run.device": "cpu", "optim.iterations": iterations}
    remark(f"1/4 train: gmtool train toy --data {data} --out {run}")
    trained = run_training("toy", flags, config_path=None, assignments=[], out=run)
    remark(f"2/4 export: gmtool export {run}")
    # Cut short by --iterations, the network may know no class yet: the demo goes on all the same
    exported = export_run(run, options=ExportOptions(allow_few_classes=iterations is not None))
    remark(f"3/4 predict: gmtool predict {data / 'JPEGImages'} --out {root / 'masks'} --model {exported.path}")
    predicting = time.monotonic()
    images = collect_images([str(data / "JPEGImages")], root / "masks")
    run_prediction(images, root / "masks", PredictOptions(), model=exported.path, device="cpu", threads=0)
    predict_seconds = time.monotonic() - predicting
    remark(f"4/4 evaluate: gmtool evaluate --model {exported.path}")
    task = score_model(exported.path, {}, None, device="cpu", threads=0)
    report = run_task(task)
    page = write_report(report, task, root)

    table = Table(title="gmtool demo", show_header=False)
    toy = ToyConfig()
    num_images = toy.labeled + toy.unlabeled + toy.val
    agreement = min(row.agreement for row in exported.parity)
    for row in (
        ("data", f"{data}: {toy.labeled} labeled, {toy.unlabeled} unlabeled, {toy.val} validation images"),
        (
            "trained",
            f"{trained.seconds:.0f} s, mIoU {percent(trained.best_miou)} % in PyTorch",
        ),
        ("exported", f"{exported.path}, {exported.path.stat().st_size / 1e6:.1f} MB"),
        ("parity", f"{agreement:.3%} of the pixels agree with PyTorch, at worst"),
        ("predicted", f"{num_images} masks in {root / 'masks'}, {num_images / predict_seconds:.0f} images/s"),
        ("evaluated", f"mIoU {percent(report.miou)} % in ONNX Runtime"),
        ("in all", f"{time.monotonic() - started:.0f} s"),
    ):
        table.add_row(*row)
    stdout().print(table)
    result(f"report: {page}")  # not in the table, which cuts long paths
    remark("try next:")
    remark(f"  gmtool predict YOUR_IMAGES --out masks/ --model {exported.path}")
    remark(
        "  gmtool train folder --data DIR --labels LIST   (images/{train,val}, masks/{train,val}, classes.json)"
    )
    remark(f"  tensorboard --logdir {run}")
