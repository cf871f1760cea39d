"""`gmtool export`: a trained run as one ONNX file that is proven against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gmtool.errors import needs_extra


def export(
    run: Annotated[Path | None, typer.Argument(help="Run folder; default: the newest one below runs/.")] = None,
    checkpoint: Annotated[
        Literal["best", "last"], typer.Option(help="Which weights: the best on validation, or the last.")
    ] = "best",
    images: Annotated[
        Path | None, typer.Option(help="Images to compare on; default: the run's validation images.")
    ] = None,
) -> None:
    """Export a trained run to ONNX, and prove that it still is the same model.

    The file takes images as decoded (uint8 RGB, any size) and gives masks; it holds its classes, its
    origin and its hash. It is written only if it agrees with PyTorch.
    """
    from gmtool.console import remark, result
    from gmtool.runs import newest_run

    with needs_extra("export", "exporting"):
        from gmtool_export.run import export_run
    done = export_run(run or newest_run(), name=checkpoint, image_dir=images)
    remark("pixels with the same label in PyTorch and ONNX Runtime:")
    for row in done.parity:
        shape = f"{row.batch}x{row.height}x{row.width}"
        remark(f"  {row.shape:<11} {shape:<12} {row.agreement:9.4%}  {row.classes_seen} classes")
    if max(row.classes_seen for row in done.parity) < 3:
        remark("warning: the network predicts fewer than three classes here: agreement proves little")
    remark(f"exported in {done.seconds:.0f} s, {done.path.stat().st_size / 1e6:.1f} MB")
    result(str(done.path))
    remark("next:")
    remark(f"  gmtool predict IMAGES --out masks/ --model {done.path}")
    remark(f"  gmtool evaluate --model {done.path}")
