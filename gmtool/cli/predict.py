"""`gmtool predict`: masks for files, folders and globs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from gmtool.errors import DataError, needs_extra


def predict(
    inputs: Annotated[list[str], typer.Argument(help="Image files, folders (with all below them) or globs.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    model: Annotated[
        Path | None, typer.Option(help="Exported model; default: the newest one below runs/.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 for one a core.")] = 0,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run a TensorRT plan that no sidecar vouches for: it is executable.")
    ] = False,
) -> None:
    """Write a mask for each image: a palette PNG of class indices at the image's own size.

    Masks lie in --out under the images' relative paths. Images that fail are listed, the others are done,
    and the exit code is 3; 1 if all failed.
    """
    run_prediction(inputs, out, model=model, device=device, threads=threads, trust=trust)


def run_prediction(
    inputs: list[str],
    out: Path,
    *,
    model: Path | None,
    device: Literal["auto", "cpu", "cuda"],
    threads: int,
    trust: bool = False,
) -> None:
    """Predict, show progress, list failures.

    Raises:
        typer.Exit: With 3 if some images failed, with 1 if all did.
    """
    from gmtool.console import remark, result, track
    from gmtool.runs import newest_model

    with needs_extra("serve", "predicting"):
        from gmtool_serving.backend import open_backend
        from gmtool_serving.inputs import collect_images
        from gmtool_serving.predict import predict_images
    images = collect_images(inputs, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"output folder {out}: cannot be made: {error.strerror}") from error
    backend = open_backend(model or newest_model(), device=device, threads=threads, trust=trust)
    remark(f"model {backend.model}, {backend.description}")
    started = time.monotonic()
    failures = []
    for outcome in track(predict_images(backend, images, out), total=len(images)):
        if outcome.error is not None:
            failures.append(outcome)
    seconds = time.monotonic() - started
    for failure in failures:
        remark(f"failed: {failure.error}")
    done = len(images) - len(failures)
    result(f"{done} masks in {out}, {len(failures)} failed, {len(images) / seconds:.1f} images/s")
    if failures:
        raise typer.Exit(3 if done else 1)
