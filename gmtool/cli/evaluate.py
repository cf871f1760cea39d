"""`gmtool evaluate`: mIoU of a model on a data set, or of a folder of masks against another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gmtool.config import LayoutName, MaskValues
from gmtool.errors import ConfigError, needs_extra

if TYPE_CHECKING:
    from gmtool.config import DataConfig
    from gmtool.report import IoUReport
    from gmtool.samples import Sample
    from gmtool.settings import Settings


def evaluate(
    model: Annotated[
        Path | None, typer.Option(help="Exported model; default: the newest one below runs/.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set; default: that of the model's run.")
    ] = None,
    layout: Annotated[
        LayoutName | None,
        typer.Option(help="Layout of --data; default: that of the model's run."),
    ] = None,
    list_: Annotated[
        Path | None, typer.Option("--list", help="List of the images to score; default: the validation set.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score this folder of masks instead of a model.")
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(help="Folder of masks to score --predictions against.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes of --predictions: voc, cityscapes, context, or a classes.json.")
    ] = None,
    mask_dir: Annotated[str | None, typer.Option(help="Folder of the masks in layout voc.")] = None,
    mask_values: Annotated[
        MaskValues | None,
        typer.Option(help="Masks hold class indices (trainIds), raw ids (labelIds) or colours."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One setting of the data, such as data.masks."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.md.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 for one a core.")] = 0,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run a TensorRT plan that no sidecar vouches for: it is executable.")
    ] = False,
) -> None:
    """Score a model on a data set, or a folder of masks against a folder of masks.

    Whole images at their own size, one scale, no flip; ignored pixels are not counted; classes that occur
    nowhere are left out of the mean. Exit code 3 if some images could not be scored.
    """
    from gmtool.console import remark, result

    if predictions is not None or ground_truth is not None:
        for option, value in (("--model", model), ("--data", data), ("--layout", layout), ("--set", set_)):
            if value:
                raise ConfigError(f"{option} scores a model, --predictions a folder of masks: take one of them")
        report = _evaluate_masks(predictions, ground_truth, list_, classes, mask_values or "index")
    else:
        if classes is not None:
            raise ConfigError("--classes is for --predictions; a model knows its own classes")
        options = {"root": data, "layout": layout, "mask_dir": mask_dir, "mask_values": mask_values}
        settings = _data_settings(set_ or [], options)
        report = run_evaluation(model, settings, list_, device=device, threads=threads, trust=trust)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        report.save(out)
        remark(f"report: {out / 'report.md'}, {out / 'report.json'}")
    result(json.dumps(report.to_dict(), indent=1) if as_json else report.to_markdown())
    if report.failed:
        raise typer.Exit(3)


def run_evaluation(
    model: Path | None,
    settings: Settings,
    list_path: Path | None,
    *,
    device: Literal["auto", "cpu", "cuda"],
    threads: int,
    trust: bool = False,
) -> IoUReport:
    """Score a model.

    Args:
        model: Exported model; None for the newest.
        settings: By dotted name; those of `data` that are not there come from the model's run.
        list_path: Images to score; None for the validation set.
        device: Where to compute.
        threads: Processor threads; 0 for one a core.
        trust: Take a TensorRT plan that no sidecar vouches for.
    """
    from gmtool.console import remark
    from gmtool.datacheck import check_masks
    from gmtool.datasets import load_split
    from gmtool.runs import newest_model

    with needs_extra("serve", "evaluating"):
        from gmtool_serving.backend import open_backend
        from gmtool_serving.evaluate import evaluate_model
    path = model or newest_model()
    backend = open_backend(path, device=device, threads=threads, trust=trust)
    config = _data_config(path, settings)
    split = load_split(config, "val", list_path or config.val)
    check_masks(split.samples, backend.spec.classes, values=config.mask_values)
    remark(f"model {path}, {backend.description}; {len(split.samples)} images of {split.name}")
    return evaluate_model(backend, split, values=config.mask_values, progress=_progress)


def _data_settings(assignments: list[str], options: dict[str, Any]) -> Settings:
    from gmtool.settings import parse_assignments

    given = {f"data.{name}": value for name, value in options.items() if value is not None}
    assigned = parse_assignments(assignments)
    for name in assigned:
        if not name.startswith("data."):
            raise ConfigError(f"--set {name}: a model is evaluated as it is; only settings of the data apply")
    return {**assigned, **given}


def _data_config(model: Path, settings: Settings) -> DataConfig:
    """Return where the data is: what was asked for, over what the model's run was trained on."""
    from gmtool.runs import CONFIG_NAME, run_of_model
    from gmtool.settings import build_config, load_toml

    if "data.root" in settings:
        # Another data set: nothing of the run's applies to it
        return build_config(settings).data
    run = run_of_model(model)
    if run is None:
        raise ConfigError(f"{model} does not lie in its run folder: give --data DIR and --layout")
    return build_config(load_toml(run / CONFIG_NAME), settings).data


def _evaluate_masks(
    predictions: Path | None,
    ground_truth: Path | None,
    list_path: Path | None,
    classes: str | None,
    values: MaskValues,
) -> IoUReport:
    from gmtool_serving.evaluate import evaluate_masks

    from gmtool.classes import load_classes

    if predictions is None or ground_truth is None or classes is None:
        raise ConfigError("scoring masks needs --predictions DIR, --ground-truth DIR and --classes")
    return evaluate_masks(
        predictions, ground_truth, list_path, classes=load_classes(classes), values=values, progress=_progress
    )


def _progress(samples: Iterable[Sample]) -> Iterator[Sample]:
    from gmtool.console import track

    listed = list(samples)
    return track(listed, total=len(listed))
