"""Train a model, and resume a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmtool.api.arguments import PathLike, given, refuse
from gmtool.api.data_set import find_data_set
from gmtool.errors import UsageError, needs_extra

if TYPE_CHECKING:
    from gmtool_training.loop.finish import RunResult

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
    encoders: Sequence[str] = (),
    init: PathLike | None = None,
    teacher: PathLike | None = None,
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
        kind: The folder of a data set, or None: its layout is recognised. Or `voc`, `voc-aug`, `cityscapes`,
            `context`, `folder`, `coco`, `toy`. What is not asked for is chosen from the data: encoder, recipe,
            input scale, time; but of `toy`, and where `recipe`, `config`, `iterations` or a setting of `method` or
            `optim` is given, it is that of the kind, which is the paper's.
        data: Folder of the data set; for `toy` it is made there.
        classes: `voc`, `cityscapes`, `context`, a classes.json, or COCO annotations.
        labels: List of the labeled images. Without it, and without `unlabeled`, all training images are labeled.
        unlabeled: List or folder of unlabeled images; by default all that are not labeled.
        val: List of the validation images.
        encoder_weights: `imagenet`, `none`, or a .safetensors or .pth file.
        encoders: Encoders to compare, such as `["timm:tf_efficientnet_lite2", "resnet50"]`; the recipe `probe`
            takes the best.
        init: Earlier run whose weights training starts from; classes are matched by name.
        teacher: Run whose network predicts the pseudo masks, such as a larger one.
        recipe: `plus`, which did best, also called `probe`; `fixmatch`, `supervised` or `paper`.
        config: TOML file of settings.
        settings: `{"optim.lr": 0.01}` or `["optim.lr=0.01"]`.
        out: Run folder, which is empty or does not exist; by default a fresh one below `runs/`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed: Seed of every random draw.
        iterations: Optimiser steps.
        minutes: Time that training may take, where it is chosen from the data or the recipe is `plus`.
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
    from gmtool_training.recipes.recipes import RECIPES
    from gmtool_training.recipes.recipes import recipe as recipe_named

    from gmtool.artifact.run_record import RunRecord
    from gmtool.artifact.runs import fresh_dir, require_empty
    from gmtool.console import remark, speaks
    from gmtool.settings import as_settings

    _let_idle_threads_sleep()
    # Everything that needs no torch comes first: a mistake is answered at once
    data_set = find_data_set(kind, data, command="train")
    kind, data, recognized = data_set.kind, data_set.root, data_set.recognized
    own = data_set.own_files()
    reasons: tuple[str, ...] = ()
    if download and kind not in ("voc", "voc-aug"):
        raise UsageError(f"--download fetches voc and voc-aug, not {kind}: give its folder with --data")
    asked = as_settings(settings)
    stepwise = iterations is not None or any(name.startswith(("method.", "optim.")) for name in asked)
    automatic = recipe is None and config is None and kind != "toy" and not (stepwise and not recognized)
    stepless = automatic or (recipe is not None and recipe_named(recipe).get("method.name") == "probe")
    of_probe = {} if stepless else {"--minutes": minutes, "--encoders": encoders}
    _refuse_misfits(of_probe, iterations if stepless else None, encoders, init)
    named = {
        "data.root": data,
        "data.classes": classes or own.get("data.classes"),
        "data.labeled": labels or own.get("data.labeled"),
        "data.unlabeled": unlabeled,
        "data.val": val or own.get("data.val"),
        "model.encoder_weights": encoder_weights,
        "model.init": init,
        "method.teacher_run": teacher,
        "probe.encoders": tuple(encoders) or None,
        "model.encoder": encoders[0] if encoders else None,
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
        "settings": asked,
    }
    if recognized and config is None:
        layers["network"] = _network_of_own_data(recipe, asked)
    full = configure(kind, given(named), **layers, chosen=RECIPES["probe"] if automatic else None)
    from gmtool_training.loop.checks import check_settings

    check_settings(full, makes_data=download or kind == "toy")
    if automatic:
        from gmtool_training.recipes.automatic import choose_settings

        chosen = choose_settings(full, minutes=minutes)
        found = (f"data set: {kind}, recognised by {recognized}",) if recognized else ()
        reasons = (*found, *chosen.reasons)
        for line in reasons:
            remark(line)
        full = configure(kind, given(named), **layers, chosen=chosen.settings)

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


def _network_of_own_data(recipe: str | None, asked: Settings) -> Settings:
    """Return the network of a recipe of gradient steps: its encoder's weights are installed."""
    from gmtool_training.recipes.recipes import FEW_LABELS

    from gmtool.console import remark

    if recipe not in ("supervised", "fixmatch") or {"model.encoder", "model.decoder"} & set(asked):
        return {}
    remark(f"encoder {FEW_LABELS['model.encoder']}, decoder pyramid: --set model.encoder=... sets another")
    return FEW_LABELS


def _refuse_misfits(
    of_probe: Mapping[str, object], iterations: int | None, encoders: Sequence[str], init: PathLike | None
) -> None:
    """Raise for options that do nothing in this run: those of the probe, and steps where it takes none."""
    if iterations is not None:
        raise UsageError(
            "--iterations is for recipes that train step by step: give --recipe supervised, paper or fixmatch "
            "with it; else --minutes N"
        )
    refuse(of_probe, "is for settings chosen from the data and for --recipe plus")
    if encoders and init is not None:
        raise UsageError("--encoders compares encoders, --init takes the one of an earlier run: take one of them")


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

    from gmtool.console import speaks
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
    _let_idle_threads_sleep()
    if speaks():  # others may be on machines without the run folder
        check_resume(Path(run), changes)
    with _loading_torch():
        from gmtool_training.loop.run import resume as go_on
    return go_on(Path(run), changes)


def _let_idle_threads_sleep() -> None:
    """Let threads of OpenMP without work sleep instead of spinning, unless the environment says otherwise.

    Beside another busy process, spinning threads take the processor from those that they wait for. OpenMP reads
    the variable when torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def _loading_torch() -> Iterator[None]:
    """Import torch within the block, and say so if that takes long."""
    from gmtool.console import announcing

    with needs_extra("train", "training"), announcing("loading torch"):
        yield
