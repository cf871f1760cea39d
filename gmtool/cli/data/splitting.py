"""`gmtool data split`: choose labeled and validation images, and folds for cross-validation."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from gmtool.cli.data.configured import configured
from gmtool.cli.options import Classes, Data, Kind, Set
from gmtool.errors import UsageError


def split(
    kind: Kind = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for labeled.txt, unlabeled.txt, val.txt and split.json.")],
    data: Data = None,
    classes: Classes = None,
    count: Annotated[int | None, typer.Option(min=1, help="Number of labeled images.")] = None,
    fraction: Annotated[str | None, typer.Option(help="Share of labeled images: 1/8 or 0.125.")] = None,
    val: Annotated[
        str | None, typer.Option(help="Share of the images with masks for validation: 1/5 or 0.2.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Lists of so many folds of the labeled images: fold-1, ..."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random order.")] = 0,
    group: Annotated[
        str | None, typer.Option(help="Regular expression on the id; images that match alike stay together.")
    ] = None,
    set_: Set = None,
) -> None:
    """Choose labeled and validation images: seeded, with every class where possible.

    Training images without a mask are unlabeled. The labeled images are --count or --fraction of those with a
    mask; all that --val leaves, if neither is given.
    """
    from gmtool.artifact.runs import require_empty
    from gmtool.classes import load_classes
    from gmtool.console import remark, result
    from gmtool.data.datasets import load_candidates
    from gmtool.data.folds import choose_folds, write_folds
    from gmtool.data.layouts import open_layout
    from gmtool.data.splitting import LabeledChoice, choose_labeled, read_candidates, write_choice
    from gmtool.escaping import printable

    require_empty(out)
    if (count is not None and fraction is not None) or not (count or fraction or val or folds):
        raise UsageError(
            "give the number of labeled images with --count, or their share with --fraction; or --val SHARE, "
            "--folds K, of all images with a mask"
        )
    data_set, config = configured(kind, data, classes, {}, set_, command="split")
    class_set = load_classes(config.data.classes)
    with_mask, without = load_candidates(config.data)
    candidates = read_candidates(with_mask.samples, class_set, values=config.data.mask_values)
    # Validation first, then labeled images of the rest
    held: tuple[str, ...] = ()
    validation = LabeledChoice((), (), frozenset())
    if val is not None:
        kept = len(candidates) - max(1, round(_share(val, "--val") * len(candidates)))
        validation = choose_labeled(candidates, kept, seed=seed, group_pattern=group)
        held = tuple(sample.id for sample in validation.unlabeled)
    free = [candidate for candidate in candidates if candidate.sample.id not in held]
    if count is None and fraction is None:
        chosen = LabeledChoice(tuple(one.sample for one in free), (), validation.missing)
    else:
        wanted = count if fraction is None else round(len(free) * _share(fraction, "--fraction"))
        chosen = choose_labeled(free, wanted or 0, seed=seed, group_pattern=group)
    labeled = {sample.id for sample in chosen.labeled}
    parts = (
        choose_folds([one for one in free if one.sample.id in labeled], folds, seed=seed, group_pattern=group)
        if folds
        else ()
    )
    # Write
    chosen = LabeledChoice(chosen.labeled, (*chosen.unlabeled, *without.samples), chosen.missing)
    missing = write_choice(chosen, out, seed=seed, group=group, classes=class_set, val=validation.unlabeled)
    folders = write_folds(parts, out)
    if missing:
        remark(f"warning: in no labeled image: {', '.join(missing)}: raise --count")
    if val is None and not folds and not config.data.val and "val" not in open_layout(config.data).parts:
        remark("warning: the data set has no validation part, which training needs: add --val 0.2")
    validating = f", {len(validation.unlabeled)} validation" if val is not None else ""
    result(f"{len(chosen.labeled)} labeled and {len(chosen.unlabeled)} unlabeled{validating} images in {out}")
    remark("next:")
    chosen_settings = [word for each in set_ or [] for word in ("--set", each)]
    named = [str(kind)] if data is None and kind is not None else [data_set.kind, "--data", str(config.data.root)]
    for folder in folders or [out]:
        lists = ["--labels", str(folder / "labeled.txt")]
        lists += ["--val", str(folder / "val.txt")] if (folder / "val.txt").is_file() else []
        remark(printable(f"  gmtool train {shlex.join([*named, *lists, *chosen_settings])}"))


def _share(text: str, option: str) -> float:
    from fractions import Fraction

    try:
        share = float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{option} {text}: expected a share such as 1/8 or 0.125") from error
    if not 0 < share < 1:
        raise UsageError(f"{option} {text}: expected a share above 0 and below 1")
    return share
