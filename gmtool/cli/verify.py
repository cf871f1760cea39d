"""`gmtool verify`: an exported model on this machine, compared with PyTorch's masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.api import verification
from gmtool.cli.options import AsJson, Device, Threads, Trust

if TYPE_CHECKING:
    from gmtool_serving.verification.run import Verification


def verify(
    model: Annotated[
        str | None,
        typer.Argument(help="Exported model, or a run folder for its newest one. [the newest one below runs/]"),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Images and PyTorch's masks. [MODEL.verify.npz, which the export wrote]"
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    trust: Trust = False,
    script: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only write a program that does this without gmtool, with numpy and onnxruntime or tensorrt.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that an exported model computes on this machine what PyTorch computed.

    Runs the images that were kept at its export, and prints the share of pixels with PyTorch's label. Exit code 1
    if there are too few at a shape.
    """
    from gmtool.console import remark, result

    if script is not None:
        from gmtool.files import write_atomically

        write_atomically(script, verification.verification_script(model, against=against))
        result(str(script))
        remark(f"on the target: python {script.name} MODEL")
        return
    done = verification.verify(model, against=against, device=device, threads=threads, trust=trust)
    if as_json:
        result(json.dumps(done.to_dict(), indent=1))
    else:
        _show(done)
    done.require()


def _show(done: Verification) -> None:
    from gmtool.console import remark, result
    from gmtool.report.report import percent

    header = done.given.header
    if not done.is_exported_file:
        remark(f"{done.model} is not the file {header.model} that was exported, but has its weights")
    result(f"{done.model}, {done.backend}: pixels with PyTorch's label")
    for shape in done.shapes:
        then = "" if shape.at_export is None else f"   at export {shape.at_export:9.4%}"
        differ = "" if shape.max_difference is None else f"   logits within {shape.max_difference:.2g}"
        bound = f"required {shape.required:.2%}"
        verdict = "" if shape.passes else "   FAILED"
        result(f"  {shape.name:<10} {shape.size:<14} {shape.agreement:9.4%}   {bound}{then}{differ}{verdict}")
    if header.miou is not None:
        scores = f"mIoU {percent(header.miou)} %, PyTorch {percent(header.miou_pytorch)} %"
        remark(f"at export, in {header.runtime}: {scores}, on {header.num_scored} validation images")
