"""`gmtool select`: options and printed result."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gmtool.cli.options import AsJson, Batch, Bits, Device, Exif, MaxPixels, Model, Threads, Trust, Workers, groups
from gmtool.errors import needs_extra

if TYPE_CHECKING:
    from gmtool_serving.select.job import Selection

EPILOG = groups(
    {
        "choice": "--count --labeled --strategy --seed --duplicates",
        "masks": "--prelabel --tolerance --min-area --min-confidence",
        "images": "--exif --bits --max-pixels",
        "machine": "--device --batch --threads --workers --trust",
        "output": "--out --quiet --json",
    }
)


def select(
    pool: Annotated[
        list[str],
        typer.Argument(
            metavar="POOL",
            help="Images, videos, folders (with all below), globs, COCO .json, @FILE: a list, -: a list on stdin.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the list, scores, contact sheet and masks.")],
    model: Model = None,
    count: Annotated[int, typer.Option(min=1, help="Images to choose.")] = 30,
    labeled: Annotated[
        Path | None, typer.Option(metavar="LIST", help="Images of the pool that are labeled: labeled.txt.")
    ] = None,
    strategy: Annotated[
        Literal["mixed", "entropy", "margin", "bald", "coreset", "kmeans++", "random"] | None,
        typer.Option(
            help="mixed: uncertain, rare classes first, unlike labeled and chosen images. entropy, margin: mean "
            "uncertainty. bald: disagreement with the mirror image. coreset: the most unlike (k-centre greedy). "
            "kmeans++: drawn by squared distance. [coreset with an output embedding, else mixed]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every random draw.")] = 0,
    duplicates: Annotated[
        float,
        typer.Option(
            min=0.0, max=255.0, metavar="LEVELS", help="Take images once whose thumbnails differ less; 0: never."
        ),
    ] = 8.0,
    prelabel: Annotated[
        list[str] | None,
        typer.Option(metavar="FORMAT", help="Write masks to correct, in a format of gmtool predict."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, metavar="PX", help="Distance of shapes from their pixels. [1]")
    ] = None,
    min_area: Annotated[int | None, typer.Option(min=0, metavar="PX", help="Smallest shape. [16]")] = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Pixels below it get no label. [0]")
    ] = None,
    exif: Exif = "apply",
    bits: Bits = 16,
    max_pixels: MaxPixels = None,
    device: Device = "auto",
    batch: Batch = None,
    threads: Threads = 0,
    workers: Workers = None,
    trust: Trust = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print failures and the result alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Choose the images to label next, with reasons, a contact sheet and, if wanted, masks to correct.

    --out gets selected.txt (ids, the most wanted first), scores.csv (all images), selected.html (to look at) and
    prelabel/. Images that fail are listed, and the exit code is 3.
    """
    from gmtool.api import selecting

    with needs_extra("serve", "predicting"):
        from gmtool.cli.terminal.progress import TerminalObserver
    found = selecting.select(
        pool,
        out=out,
        model=model,
        count=count,
        labeled=labeled,
        strategy=strategy,
        seed=seed,
        duplicates=duplicates,
        prelabel=prelabel,
        tolerance=tolerance,
        min_area=min_area,
        min_confidence=min_confidence,
        batch=batch,
        exif=exif,
        bits=bits,
        max_pixels=max_pixels,
        workers=workers,
        device=device,
        threads=threads,
        trust=trust,
        observer=TerminalObserver(quiet=True),
        **({} if quiet else {"progress": _progress}),
    )
    _show(found, count, asked=strategy is not None, as_json=as_json)
    if found.failures or (found.prelabel is not None and found.prelabel.failed):
        raise typer.Exit(3)


def _progress(total: int) -> AbstractContextManager[Callable[[int], None]]:
    from gmtool.progress import phase

    return phase("measuring", total)


def _show(found: Selection, count: int, *, asked: bool, as_json: bool) -> None:
    from gmtool.console import remark, result
    from gmtool.errors import MessageKinds
    from gmtool.escaping import printable

    for line in MessageKinds((message.partition(":")[0], message) for message in found.failures).lines():
        remark(f"failed: {line}")
    if found.not_in_pool:
        remark(f"{found.not_in_pool} labeled images are not in the pool: nothing was compared with them")
    if len(found.chosen) < count:
        remark(f"only {len(found.chosen)} of {count}: the others are labeled, near-duplicates or failed")
    if as_json:
        result(json.dumps(_to_dict(found), indent=1))
        return
    result(
        printable(
            f"{len(found.chosen)} of {found.pool} images in {found.out / 'selected.txt'}; "
            f"{found.labeled} labeled, {found.duplicates} near-duplicates left out, {len(found.failures)} failed"
        )
    )
    hint = "; with the output embedding (gmtool export --output mask+confidence+embedding) it would be coreset"
    remark(f"strategy {found.strategy}{hint if found.strategy == 'mixed' and not asked else ''}")
    remark(printable(f"look at them: {found.out / 'selected.html'}; all scores: {found.out / 'scores.csv'}"))
    if found.prelabel is not None:
        remark(printable(f"masks to correct: {shlex.quote(found.prelabel.out)}"))


def _to_dict(found: Selection) -> dict[str, Any]:
    return {
        "out": str(found.out),
        "pool": found.pool,
        "labeled": found.labeled,
        "not_in_pool": found.not_in_pool,
        "duplicates": found.duplicates,
        "failures": list(found.failures),
        "selected": [
            {"id": str(image.output), "path": str(image), "reason": reason}
            for image, reason in zip(found.chosen, found.reasons, strict=True)
        ],
        "prelabel": None if found.prelabel is None else found.prelabel.out,
    }
