"""`gmtool data init`: classes and lists of a folder of images of which some have masks."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmtool.errors import UsageError

if TYPE_CHECKING:
    from gmtool.labels.dataset.initializing import Initialized


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with images/ and, for some, masks/.")],
    names: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C", help="Names of the classes, by ascending value or colour. [background, class_1, ...]"
        ),
    ] = None,
    val: Annotated[
        float, typer.Option(help="Share of the images with masks for validation, without images/val.")
    ] = 0.2,
    group: Annotated[
        str | None, typer.Option(help="Regular expression on names; images that match alike stay in one part.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the validation part.")] = 0,
) -> None:
    """Propose classes.json from the masks of a folder, and list its labeled, unlabeled and validation images.

    Nothing that exists is overwritten. Look at the values found, and change names and colours in classes.json.
    """
    from gmtool.console import remark, result
    from gmtool.data.datasets import FEWEST_LABELED
    from gmtool.escaping import printable
    from gmtool.labels.dataset.initializing import initialize

    if not 0 < val < 1:
        raise UsageError(f"--val {val:g}: expected a share above 0 and below 1")
    listed = None if names is None else [name.strip() for name in names.split(",")]
    made = initialize(folder, names=listed, val=val, group=group, seed=seed, progress=_track)
    _show(made)
    result(
        printable(
            f"{made.labeled} labeled, {made.val} validation and {made.unlabeled} unlabeled images; "
            f"classes in {folder / 'classes.json'}"
        )
    )
    if not made.unlabeled:
        remark("warning: no image without a mask: training needs unlabeled images; put more into images/")
    if made.labeled < FEWEST_LABELED:
        remark(f"warning: {made.labeled} labeled training images; gmtool train needs {FEWEST_LABELED}: label more")
    remark("next:")
    remark(printable(f"  {shlex.join(made.train_line())}"))


def _show(made: Initialized) -> None:
    from rich.table import Table

    from gmtool.console import cell, remark, stdout

    proposal = made.proposal
    is_color = proposal.values == "color"
    labels = proposal.classes.palette if is_color else proposal.classes.raw_ids
    name_of = dict(zip(labels, proposal.classes.names, strict=True))
    table = Table()
    table.add_column("colour" if is_color else "value", justify="right")
    table.add_column("class")
    for title in ("masks", "pixels %"):
        table.add_column(title, justify="right")
    for found in proposal.found:
        key = found.color if is_color else found.value
        name = name_of.get(key, "(ignored)")
        shown = str(list(found.color)) if is_color and found.color else str(found.value)
        table.add_row(cell(shown), cell(name), str(found.masks), f"{100 * found.share:.2f}")
    stdout().print(table)
    remark(f"masks: {proposal.reason}; --set data.mask_values={proposal.values}")


def _track(items: Iterable[Any], total: int) -> Iterator[Any]:
    from gmtool.progress import track

    return track(items, total=total)
