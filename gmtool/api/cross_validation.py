"""Cross-validation: train on folds of the labeled images, and score each image by a fit that has not seen it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gmtool.api.arguments import PathLike, given
from gmtool.api.data_set import find_data_set
from gmtool.errors import UsageError

if TYPE_CHECKING:
    from gmtool.report.report import IoUReport

LEVEL = 0.95
JSON_NAME, MARKDOWN_NAME = "cross_validation.json", "cross_validation.md"


@dataclass(frozen=True)
class CrossValidation:
    """Scores of the folds."""

    run_dir: Path
    reports: tuple[IoUReport, ...]
    """Report of each fold, on the images that it did not see."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: mIoU and IoU by class, over all folds together and by fold, as shares."""
        from gmtool.report.metrics import iou_per_class, mean_iou

        together = sum((report.confusion for report in self.reports), np.zeros_like(self.reports[0].confusion))
        by_fold = np.array([iou_per_class(report.confusion) for report in self.reports])
        names = self.reports[0].classes.names
        rows = zip(names, iou_per_class(together).tolist(), by_fold.T, strict=True)
        return {
            "folds": len(self.reports),
            "images": [report.num_images for report in self.reports],
            "miou": _figures(mean_iou(together), [report.miou for report in self.reports]),
            "classes": [{"name": name, **_figures(iou, values.tolist())} for name, iou, values in rows],
        }

    def to_markdown(self) -> str:
        """Return a table: each class over all folds together, mean and interval over the folds."""
        value = self.to_dict()
        lines = [
            f"# mIoU {_percent(value['miou']['together'])} % in {value['folds']} folds of "
            f"{sum(value['images'])} labeled images",
            "",
            "Every image is scored by a fit that has not seen it; 95 % intervals over folds (Student's t).",
            "",
            "| class | IoU % together | mean of folds | interval |",
            "|---|---:|---:|---:|",
        ]
        for name, row in [*((one["name"], one) for one in value["classes"]), ("mean", value["miou"])]:
            interval = row["interval"]
            shown = "-" if interval is None else f"{_percent(interval[0])} to {_percent(interval[1])}"
            lines.append(f"| {name} | {_percent(row['together'])} | {_percent(row['mean'])} | {shown} |")
        return "\n".join(lines) + "\n"


def cross_validate(
    kind: str | None,
    folds: int,
    *,
    data: PathLike | None = None,
    classes: PathLike | None = None,
    labels: PathLike | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    seed: int | None = None,
    group: str | None = None,
    out: PathLike,
    **options: Any,
) -> CrossValidation:
    """Train on folds of the labeled images; other images of the training part are unlabeled in each.

    Args:
        kind: See `train`.
        folds: Number of folds.
        data: See `train`.
        classes: See `train`.
        labels: List of the labeled images; without it, those with a mask.
        settings: See `train`.
        seed: Of the folds and of each fit.
        group: Regular expression on ids; images that match alike stay in one fold, such as frames of a video.
        out: Folder for the lists, a run `fold-1/run`, `fold-2/run`, ... each, and the table.
        options: Further keywords of `train`.

    Raises:
        GmtoolError: See `train`.
        UsageError: More folds than labeled images.
    """
    from gmtool_training.recipes.configure import configure

    from gmtool.api.training import train
    from gmtool.artifact.runs import require_empty
    from gmtool.classes import load_classes
    from gmtool.console import remark
    from gmtool.data.datasets import load_candidates, load_split
    from gmtool.data.folds import choose_folds, write_folds
    from gmtool.data.splitting import read_candidates
    from gmtool.files import write_atomically
    from gmtool.settings import as_settings

    # Labeled images with their classes
    require_empty(Path(out))
    data_set = find_data_set(kind, data, command="train")
    named = {**data_set.own_files(), **given({"data.root": data_set.root, "data.classes": classes})}
    named |= given({"data.labeled": labels})
    config = configure(data_set.kind, named, settings=as_settings(settings)).data
    class_set = load_classes(config.classes)
    labeled = load_split(config, "train", config.labeled) if config.labeled else load_candidates(config)[0]
    candidates = read_candidates(labeled.samples, class_set, values=config.mask_values)
    parts = choose_folds(candidates, folds, seed=seed or 0, group_pattern=group)
    # Fits
    folders = write_folds(parts, Path(out))
    reports = []
    for number, folder in enumerate(folders, start=1):
        remark(f"fold {number} of {folds}")
        reports.append(
            train(
                kind,
                data=data,
                classes=classes,
                labels=folder / "labeled.txt",
                val=folder / "val.txt",
                settings=settings,
                seed=seed,
                out=folder / "run",
                **options,
            ).report
        )
    # Table
    found = CrossValidation(Path(out), tuple(reports))
    write_atomically(Path(out) / JSON_NAME, json.dumps(found.to_dict(), indent=1) + "\n")
    write_atomically(Path(out) / MARKDOWN_NAME, found.to_markdown())
    return found


def refuse_with_folds(options: Mapping[str, object]) -> None:
    """Raise `UsageError` for options of a single run."""
    for option, value in options.items():
        if value:
            raise UsageError(f"{option} is of one run, --folds trains several: take one of them")


def _figures(together: float, values: list[float]) -> dict[str, Any]:
    """Return the figure of all folds together, and mean and interval over the folds that have one."""
    known = [value for value in values if np.isfinite(value)]
    mean = float(np.mean(known)) if known else None
    return {
        "together": together if np.isfinite(together) else None,
        "mean": mean,
        "interval": None if len(known) < 2 else _interval(known),
        "by_fold": [value if np.isfinite(value) else None for value in values],
    }


def _interval(values: list[float]) -> list[float]:
    """Return the interval of a mean by Student's t, within 0 and 1; rather too narrow: folds share images."""
    import scipy.stats

    half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return [float(max(0.0, np.mean(values) - half)), float(min(1.0, np.mean(values) + half))]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
