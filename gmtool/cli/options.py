"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Literal

import typer

from gmtool.config import MaskValues

WIDTH = 76

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Threads = Annotated[int, typer.Option(min=0, help="Processor threads; 0 for one a core.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run a model that was changed after its export, or a plan without sidecar: it is executable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Exif = Annotated[Literal["apply", "ignore"], typer.Option(help="Masks of images as displayed, or as stored.")]
Bits = Annotated[int, typer.Option(min=8, max=16, help="Bits that 16-bit grey images use: 12 for many cameras.")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Refuse larger images before decoding. [200000000]")]
Batch = Annotated[
    int | None,
    typer.Option(min=1, help="Images of one size computed at once. [1; on a GPU 8, of a plan its best]"),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, help="Decoding processes; 0 decodes in threads. [one a core, at most 8, fewer in little memory]"
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="Exported model, or a run folder for its newest one. [the newest one below runs/]"),
]
Kind = Annotated[
    str | None,
    typer.Argument(
        metavar="[DIR|KIND]",
        help="Folder of a data set: its layout is recognised. Or a kind: voc, voc-aug, cityscapes, context, "
        "folder, coco, toy.",
    ),
]
Data = Annotated[Path | None, typer.Option(help="Folder of the data set.")]
Classes = Annotated[
    str | None, typer.Option(help="voc, cityscapes, context, a classes.json, or COCO annotations.")
]
Labels = Annotated[Path | None, typer.Option(help="List of the labeled images.")]
Unlabeled = Annotated[
    Path | None, typer.Option(help="List or folder of unlabeled images. [all that are not labeled]")
]
Val = Annotated[Path | None, typer.Option(help="List of the validation images.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting; may be repeated.")
]
MaskEncoding = Annotated[
    MaskValues | None,
    typer.Option(help="True masks hold class indices (trainIds), raw ids (labelIds) or colours. [recognised]"),
]


def groups(options: Mapping[str, str]) -> str:
    """Return an epilog of the help that lists options by subject, at most `WIDTH` characters a line.

    Panels would need rich, which takes longer to load than everything else of a help.
    """
    indent = max(map(len, options)) + 4
    lines = [
        line
        for name, text in options.items()
        for line in wrap(
            text,
            WIDTH,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
    ]
    return "\n".join(("\b", "Options by subject:", *lines))
