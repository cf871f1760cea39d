"""Train a model, and resume a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmtool.api.arguments import PathLike, given
from gmtool.errors import UsageError, needs_extra

if TYPE_CHECKING:
    from gmtool_training.loop.run import RunResult

    from gmtool.settings import Settings


def train(
    kind: str | None = None,
    *,
    data: PathLike | None = None,
    classes: PathLike | None = None,
    labels: PathLike | None = None,
    unlabeled: PathLike | None = None,
    val: PathLike | None = None,
    encoder_weights: PathLike | None = None,
    recipe: str | None = None,
    config: PathLike | None = None,
    settings: Settings | Sequence[str] = (),
    out: PathLike | None = None,
    device: str | None = None,
    seed: int | None = None,
    iterations: int | None = None,
    minutes: float | None = None,
    compile: bool | None = None,
    cache: str | None = None,
    download: bool = False,
) -> RunResult:
    """Train a model with a few labeled and many unlabeled images.

    Settings: defaults, then those of the kind, then `recipe`, `config`, `settings`, and the named ones.

    Args:
        kind: `voc`, `voc-aug`, `cityscapes`, `context`, `folder`, `coco` or `toy`, with the settings of that kind.
            None, or the folder of a data set: the layout is recognised, and what is not asked for is chosen from
            the data: encoder, recipe, input scale, time.
        data: Folder of the data set; for `toy` it is made there.
        classes: `voc`, `cityscapes`, `context`, a classes.json, or COCO annotations.
        labels: List of the labeled images. Without it, and without `unlabeled`, all training images are labeled.
        unlabeled: List or folder of unlabeled images; by default all that are not labeled.
        val: List of the validation images.
        encoder_weights: `imagenet`, `none`, or a .safetensors or .pth file.
        recipe: `supervised`, `paper`, `fixmatch`, `plus` or `probe`.
        config: TOML file of settings.
        settings: `{"optim.lr": 0.01}` or `["optim.lr=0.01"]`.
        out: Run folder, which is empty or does not exist; by default a fresh one below `runs/`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed: Seed of every random draw.
        iterations: Optimiser steps.
        minutes: Time that training may take, where it is chosen from the data or the recipe is `probe`.
        compile: Translate the network with torch.compile.
        cache: `none`, or `ram`: decode every image once.
        download: Fetch PASCAL VOC, for `voc-aug` SBD too.

    Returns:
        Run folder, report of the last weights, and seconds.

    Raises:
        GmtoolError: Something is wrong with settings, data or weights. If it was found before the first step, no
            run folder was made.
    """
    from gmtool_training.recipes.configure import configure
    from gmtool_training.recipes.presets import PRESETS
    from gmtool_training.recipes.recipes import RECIPES

    from gmtool.artifact.run_record import RunRecord
    from gmtool.artifact.runs import fresh_dir, require_empty
    from gmtool.console import remark, speaks
    from gmtool.data.recognize import own_file, recognize_kind
    from gmtool.settings import as_settings

    # Everything that needs no torch comes first: a mistake is answered at once
    recognized = ""
    reasons: tuple[str, ...] = ()
    if kind is None or (kind not in PRESETS and data is None and Path(kind).is_dir()):
        data = kind if data is None else data
        if data is None:
            raise UsageError("train what? give the folder of a data set")
        kind, recognized = recognize_kind(Path(data))
    if download and kind not in ("voc", "voc-aug"):
        raise UsageError(f"--download fetches voc and voc-aug, not {kind}: give its folder with --data")
    automatic = bool(recognized) and recipe is None and config is None
    if minutes is not None and not automatic and recipe != "probe":
        raise UsageError("--minutes is for gmtool train DIR and for --recipe probe; others take --iterations")
    named = {
        "data.root": data,
        "data.classes": classes or (own_file(data, "classes.json") if recognized else None),
        "data.labeled": labels or (own_file(data, "labeled.txt") if recognized else None),
        "data.unlabeled": unlabeled,
        "data.val": val,
        "model.encoder_weights": encoder_weights,
        "run.device": device,
        "run.seed": seed,
        "optim.iterations": iterations,
        "run.compile": compile,
        "data.cache": cache,
        "probe.minutes": minutes,
    }
    run_dir = fresh_dir(kind) if out is None else Path(out)
    if speaks():  # another process may have begun to fill it
        require_empty(run_dir)
    layers: dict[str, Any] = {
        "recipe_name": recipe,
        "config_path": None if config is None else Path(config),
        "settings": as_settings(settings),
    }
    full = configure(kind, given(named), **layers, chosen=RECIPES["probe"] if automatic else None)
    if automatic:
        from gmtool_training.recipes.automatic import choose_settings

        chosen = choose_settings(full.data, minutes=minutes)
        reasons = (f"data set: {kind}, recognised by {recognized}", *chosen.reasons)
        for line in reasons:
            remark(line)
        full = configure(kind, given(named), **layers, chosen=chosen.settings)

    from gmtool_training.loop.checks import check_settings

    check_settings(full, makes_data=download or kind == "toy")
    with _loading_torch():
        from gmtool_training.data.download import download_data
        from gmtool_training.loop.run import train as run

    def prepare() -> None:
        if download:
            download_data(full.data)
        if kind == "toy":
            from gmtool.data.toy import ToyConfig, generate_toy

            generate_toy(full.data.root, ToyConfig())

    named_recipe = recipe or ("probe" if automatic else "paper" if config is None else "")
    record = RunRecord(kind=kind, recipe=named_recipe, reasons=reasons)
    return run(full, run_dir, prepare=prepare, record=record)


def resume(
    run: PathLike,
    *,
    data: PathLike | None = None,
    labels: PathLike | None = None,
    unlabeled: PathLike | None = None,
    val: PathLike | None = None,
    settings: Settings | Sequence[str] = (),
    device: str | None = None,
    seed: int | None = None,
    iterations: int | None = None,
    compile: bool | None = None,
    cache: str | None = None,
) -> RunResult:
    """Continue a stopped run from its last checkpoint; the result is the same as without the stop.

    Args:
        run: Run folder.
        data: Folder of the data set, if it was moved.
        labels: List of the labeled images, if it was moved.
        unlabeled: List or folder of the unlabeled images, if it was moved.
        val: List of the validation images, if it was moved.
        settings: Settings that no computation depends on: `{"data.workers": 0}` or `["data.workers=0"]`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed: The run's own; another is refused.
        iterations: Optimiser steps in all, to train longer.
        compile: Translate the network with torch.compile.
        cache: `none` or `ram`.

    Raises:
        CheckpointError: Not a run, or all its checkpoints are damaged.
        ConfigError: The run is finished, its data has changed, another process trains it, or a setting was
            changed that the computation depends on.
    """
    from gmtool_training.loop.resumable import check_resume

    from gmtool.settings import as_settings

    named = {
        "data.root": data,
        "data.labeled": labels,
        "data.unlabeled": unlabeled,
        "data.val": val,
        "run.device": device,
        "run.seed": seed,
        "optim.iterations": iterations,
        "run.compile": compile,
        "data.cache": cache,
    }
    changes = {**as_settings(settings), **given(named)}
    check_resume(Path(run), changes)
    with _loading_torch():
        from gmtool_training.loop.run import resume as go_on
    return go_on(Path(run), changes)


@contextmanager
def _loading_torch() -> Iterator[None]:
    """Import torch within the block, and say so if that takes long.

    Threads of OpenMP that have nothing to do sleep instead of spinning: beside another busy process, spinning
    threads take the processor from those that the others wait for. The variable is read when torch is loaded.
    """
    from gmtool.console import announcing

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with needs_extra("train", "training"), announcing("loading torch"):
        yield
