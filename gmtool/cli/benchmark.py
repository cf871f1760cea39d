"""`gmtool benchmark`: exported models side by side on the same images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.cli.options import AsJson, Device, Threads, Trust
from gmtool.config import MaskValues
from gmtool.errors import needs_extra

if TYPE_CHECKING:
    from gmtool_serving.benchmark.images import ImageBatch
    from gmtool_serving.benchmark.run import BenchmarkRow


def benchmark(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Exported models, ONNX, OpenVINO or plans, or run folders for their newest one; the first is the "
            "reference."
        ),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder of images; default: the validation set of the first model's run.")
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(help="Folder of the masks of --images, *.png of the same relative names.")
    ] = None,
    mask_values: Annotated[
        MaskValues | None, typer.Option(help="Masks hold class indices (default), raw ids or colours.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Images, evenly spaced; 0 for all.")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Images at once; only those of one size go together.")] = 1,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Bring images to this size; default: their own.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often every batch is timed.")] = 5,
    device: Device = "auto",
    threads: Threads = 0,
    memory: Annotated[
        bool, typer.Option(help="Measure each model's peak memory, in a process of its own.")
    ] = True,
    trust: Trust = False,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="File for the figures as JSON.")] = None,
) -> None:
    """Compare exported models on the same images: size, load time, latency, images/s, mIoU, agreement.

    Every batch is timed on one model right after the other, round after round, so that whatever else the machine
    does hurts all alike; decoding is not timed. Latency is that of a batch. Exit code 3 if a model could not be
    run.
    """
    from gmtool.artifact.lookup import find_model
    from gmtool.artifact.shapes import parse_size
    from gmtool.console import remark, result

    is_run = [model.is_dir() or model.suffix in (".json", ".safetensors") for model in models]
    models = [find_model(model) if run else model for model, run in zip(models, is_run, strict=True)]
    with needs_extra("serve", "running a model"):
        from gmtool_serving.backends.opening import open_backend
        from gmtool_serving.benchmark.images import images_for, load_batches, spread
        from gmtool_serving.benchmark.run import BenchmarkSettings, figures, run_benchmark
    wanted = None if size is None else parse_size(size, where="--size")
    classes = open_backend(models[0], device=device, threads=threads, trust=trust).spec.classes
    samples, values = images_for(models[0], images, ground_truth, mask_values)
    batches = load_batches(spread(samples, limit), classes, values=values, batch=batch, size=wanted)
    remark(_plan(batches, rounds))
    settings = BenchmarkSettings(device=device, threads=threads, rounds=rounds, memory=memory, trust=trust)
    rows = run_benchmark(models, batches, settings, progress=_progress)
    text = json.dumps(figures(rows, batches, batch, settings), indent=1)
    if out is not None:
        from gmtool.files import write_atomically

        write_atomically(out, text + "\n")
        remark(f"figures: {out}")
    if as_json:
        result(text)
    else:
        _show(rows)
    if any(row.error for row in rows):
        raise typer.Exit(3)


def _plan(batches: list[ImageBatch], rounds: int) -> str:
    count, sizes = sum(batch.count for batch in batches), {batch.images.shape[1:3] for batch in batches}
    shown = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:3]) + (
        ", ..." if len(sizes) > 3 else ""
    )
    truth = "with" if batches[0].truths else "without"
    return f"{count} images ({shown}) in {len(batches)} batches, {rounds} rounds, {truth} ground truth"


def _show(rows: list[BenchmarkRow]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from gmtool.console import cell, remark, result, stdout
    from gmtool.report.report import percent

    names = _names([row.model for row in rows])
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("model", overflow="fold")
    for title in ("MB", "load\ns", "p50\nms", "p95\nms", "images\n/s", "speed", "mIoU\n%", "same\n%", "peak\nMB"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in zip(names, rows, strict=True):
        cells = [
            f"{row.size_bytes / 1e6:.1f}",
            *(_figure(value, digits) for value, digits in ((row.load_s, 2), (row.p50_ms, 1), (row.p95_ms, 1))),
            _figure(row.images_per_s, 1),
            "-" if row.speed is None else f"{row.speed:.2f}x",
            percent(row.miou),
            percent(row.agreement),
            _figure(row.peak_bytes and row.peak_bytes / 1e6, 0),
        ]
        table.add_row(cell(name), *cells)
    stdout().print(table)
    for backend in sorted({row.backend for row in rows if row.backend}):
        result(backend)
    if any(row.peak_of == "cuda" for row in rows):
        result("peak MB of models on CUDA: memory of the card")
    for row in rows:
        if row.error:
            remark(f"failed: {row.model}: {row.error}")


def _names(models: list[str]) -> list[str]:
    """Return file names, or whole paths if two are the same."""
    names = [Path(model).name for model in models]
    return names if len(set(names)) == len(set(models)) else models


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _progress(rounds: Iterable[int]) -> Iterator[int]:
    from gmtool.progress import track

    listed = list(rounds)
    return track(listed, total=len(listed))
