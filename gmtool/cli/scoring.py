"""What `gmtool evaluate` and the demo share: from options to what is scored, and the files of a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gmtool.errors import ConfigError, needs_extra

if TYPE_CHECKING:
    from gmtool_serving.backends.multi_view import Averaging
    from gmtool_serving.scoring.evaluate import Task

    from gmtool.config import DataConfig, MaskValues
    from gmtool.report.comparison import Comparison
    from gmtool.report.report import IoUReport
    from gmtool.settings import Settings


def score_model(
    model: Path | None,
    settings: Settings,
    list_path: Path | None,
    *,
    device: Literal["auto", "cpu", "cuda"],
    threads: int,
    averaging: Averaging | None = None,
    trust: bool = False,
) -> Task:
    """Prepare scoring a model.

    Args:
        model: Exported model; None for the newest.
        settings: By dotted name; those of `data` that are not there come from the model's run.
        list_path: Images to score; None for the validation set.
        device: Where to compute.
        threads: Processor threads; 0 for one a core.
        averaging: Windows, scales and mirror images; None for the whole image once.
        trust: Take a TensorRT plan that no sidecar vouches for.
    """
    from gmtool.artifact.runs import newest_model
    from gmtool.console import remark
    from gmtool.data.datasets import load_split

    with needs_extra("serve", "evaluating"):
        from gmtool_serving.backends.opening import open_backend
        from gmtool_serving.scoring.tasks import model_task
    path = model or newest_model()
    backend = open_backend(path, device=device, threads=threads, trust=trust)
    config = _data_config(path, settings)
    split = load_split(config, "val", list_path or config.val, missing_masks=True)
    task = model_task(backend, split, values=config.mask_values, averaging=averaging)
    remark(f"model {path}, {backend.description}; {len(split.samples)} images of {split.name}")
    return task


def score_masks(
    predictions: Path | None,
    ground_truth: Path | None,
    list_path: Path | None,
    settings: Settings,
    *,
    classes: str | None,
    values: MaskValues | None,
    prediction_values: MaskValues | None,
    images: Path | None,
) -> Task:
    """Prepare scoring masks against a folder of ground truth, or against a data set's own."""
    from gmtool_serving.scoring.tasks import data_masks_task, masks_task

    from gmtool.classes import load_classes
    from gmtool.console import remark
    from gmtool.data.datasets import load_split
    from gmtool.settings import build_config

    has_data = "data.root" in settings
    if predictions is None or classes is None or (ground_truth is None) != has_data:
        raise ConfigError(
            "scoring masks needs --predictions and --classes, and either --ground-truth DIR or --data DIR"
        )
    known = load_classes(classes)
    if ground_truth is None:
        if images is not None:
            raise ConfigError("--images goes with --ground-truth; a data set has its own images")
        config = build_config(settings).data
        split = load_split(config, "val", list_path or config.val, missing_masks=True)
        task = data_masks_task(
            predictions, split, classes=known, values=config.mask_values, prediction_values=prediction_values
        )
    else:
        task = masks_task(
            predictions,
            ground_truth,
            list_path,
            classes=known,
            values=values,
            prediction_values=prediction_values,
            images=images,
        )
    remark(f"ground truth: {task.protocol.truth_values}; {len(task.ids)} images of {task.provenance.split}")
    remark(f"predictions: {task.protocol.prediction_values}")
    return task


def run_task(task: Task, *, with_boundary: bool = False) -> IoUReport:
    """Score, and show on a terminal how far it is."""
    from gmtool_serving.scoring.evaluate import score

    return score(task, progress=_progress, with_boundary=with_boundary)


def write_report(report: IoUReport, task: Task | None, out: Path) -> Path:
    """Write `report.json`, `.md`, `.html`, `classes.csv` and `images.csv`; return the HTML's path.

    With `task`, the worst and the median images are predicted once more, for their pictures.
    """
    from gmtool.files import write_atomically
    from gmtool.report.html import report_html
    from gmtool.report.tables import save_report

    out.mkdir(parents=True, exist_ok=True)
    save_report(report, out)  # first: pictures may fail
    examples = []
    if task is not None:
        from gmtool_serving.scoring.evaluate import find_examples

        examples = find_examples(task, report)
    page = out / "report.html"
    write_atomically(page, report_html(report, examples))
    return page


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write `comparison.json`, `.md` and `.html`; return the HTML's path."""
    from gmtool.files import write_atomically
    from gmtool.report.comparison import comparison_markdown
    from gmtool.report.html import comparison_html
    from gmtool.report.report import format_json

    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.json", format_json(comparison.to_dict()) + "\n")
    write_atomically(out / "comparison.md", comparison_markdown(comparison))
    page = out / "comparison.html"
    write_atomically(page, comparison_html(comparison))
    return page


def data_settings(assignments: list[str], options: dict[str, Any]) -> Settings:
    """Return the settings of the data, by dotted name."""
    from gmtool.settings import parse_assignments

    given = {f"data.{name}": value for name, value in options.items() if value is not None}
    assigned = parse_assignments(assignments)
    for name in assigned:
        if not name.startswith("data."):
            raise ConfigError(f"--set {name}: a model is evaluated as it is; only settings of the data apply")
    return {**assigned, **given}


def _data_config(model: Path, settings: Settings) -> DataConfig:
    """Return where the data is: what was asked for, over what the model's run was trained on."""
    from gmtool.artifact.run_config import load_run_config, refuse_missing_data
    from gmtool.artifact.runs import run_of_model
    from gmtool.settings import build_config

    if "data.root" in settings:
        # Another data set: nothing of the run's applies to it
        return build_config(settings).data
    run = run_of_model(model)
    if run is None:
        raise ConfigError(f"{model} does not lie in its run folder: give --data DIR and --layout")
    config = load_run_config(run, settings).data
    refuse_missing_data(
        config, run, remedy=f"give the folder where it is now with --data DIR --layout {config.layout}"
    )
    return config


def _progress(ids: Iterable[str]) -> Iterator[str]:
    from gmtool.console import track

    listed = list(ids)
    return track(listed, total=len(listed))
