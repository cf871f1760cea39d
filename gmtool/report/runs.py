"""Training runs below a folder as rows of a table, and two of them compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmtool.artifact.checkpoints import read_checkpoint
from gmtool.artifact.run_config import load_run_config
from gmtool.artifact.run_record import EVENTS_NAME, read_events, read_record
from gmtool.artifact.runs import CONFIG_NAME
from gmtool.config import TrainConfig
from gmtool.errors import CheckpointError, GmtoolError

SEARCHED_DEPTH = 4
"""Folders below the named one in which runs are looked for."""


@dataclass(frozen=True)
class RunRow:
    """A run in a table; None and empty where it is not known."""

    path: Path
    recipe: str
    data: str
    """Data set kind or layout, and the name of its folder."""
    labeled: int | None
    unlabeled: int | None
    iteration: int
    iterations: int | None
    """Steps of the run; None of a probe that is not fitted: it has none that are counted."""
    last: float | None
    """mIoU of the last validation, in [0, 1]."""
    best: float | None
    seconds: float
    started: str

    @property
    def is_finished(self) -> bool:
        """Whether all its steps are done, or it wrote its report."""
        done = self.iterations is not None and self.iteration >= self.iterations
        return done or (self.path / "report.json").is_file()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self) | {"path": str(self.path), "finished": self.is_finished}


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder, by name; the folder itself if it is one.

    Raises:
        CheckpointError: The folder does not exist.
    """
    if not folder.is_dir():
        raise CheckpointError(f"folder of runs {folder} does not exist")
    paths = [folder / CONFIG_NAME]
    for depth in range(1, SEARCHED_DEPTH):
        paths += sorted(folder.glob("*/" * depth + CONFIG_NAME))
    return [path.parent for path in paths if path.is_file()]


def read_run(run_dir: Path) -> RunRow:
    """Return a run as a row.

    Raises:
        GmtoolError: Not a run, or its settings cannot be read.
    """
    config, record = load_run_config(run_dir), read_record(run_dir)
    last, best = (_checkpoint(run_dir, name) for name in ("last", "best"))
    events = read_events(run_dir) if (run_dir / EVENTS_NAME).is_file() else []
    elapsed = max((float(event.get("seconds") or 0) for event in events), default=0.0)
    seconds = max(record.seconds, elapsed)  # a run that goes on has a record of its end before
    scores = [event.get("miou") for event in events if event.get("kind") in ("val", "final")]
    last_miou = last[1] if last else None
    if last_miou is None and scores:  # it was saved between two validations
        last_miou = scores[-1]
    iteration = last[0] if last else 0
    iterations: int | None = config.optim.iterations
    if config.method.name == "probe":  # its steps are not those of the settings
        iterations = iteration if last else None
    return RunRow(
        path=run_dir,
        recipe=record.recipe or config.method.name,
        data=f"{record.kind or config.data.layout}: {config.data.root.name}",
        labeled=record.labeled,
        unlabeled=record.unlabeled,
        iteration=iteration,
        iterations=iterations,
        last=last_miou,
        best=best[1] if best else None,
        seconds=seconds,
        started=record.started,
    )


def different_settings(first: TrainConfig, second: TrainConfig) -> list[tuple[str, str, str]]:
    """Return (name, value, value) of the settings that differ between two runs."""
    tables = [json.loads(json.dumps(asdict(config), default=str)) for config in (first, second)]
    return [
        (f"{section}.{name}", json.dumps(value), json.dumps(tables[1][section][name]))
        for section, table in tables[0].items()
        for name, value in table.items()
        if value != tables[1][section][name]
    ]


def draw_runs(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> bytes:
    """Return a PNG with validation mIoU and loss of several runs over the iterations.

    Args:
        runs: Name and events of each run.
    """
    import io

    from matplotlib.figure import Figure

    from gmtool.report.charts import COLORS

    figure = Figure(figsize=(9, 7), dpi=110, facecolor="white", layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for place, (name, events) in enumerate(runs):
        for panel, kind, key, factor in ((panels[0], "val", "miou", 100), (panels[1], "train", "loss", 1)):
            known = [event for event in events if event["kind"] == kind and event.get(key) is not None]
            points = [(event["iteration"], factor * event[key]) for event in known]
            x, y = zip(*points, strict=True) if points else ((), ())
            marker = "o" if kind == "val" or len(points) == 1 else ""
            panel.plot(x, y, color=COLORS[place % len(COLORS)], marker=marker, markersize=4, label=name)
    panels[0].set_ylabel("validation mIoU, %")
    panels[1].set_ylabel("loss")
    panels[1].set_yscale("log")
    panels[1].set_xlabel("iteration")
    panels[1].xaxis.get_major_locator().set_params(integer=True)
    for panel in panels:
        panel.grid(visible=True, color="#e4e4e4", linewidth=0.8)
        panel.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _checkpoint(run_dir: Path, name: str) -> tuple[int, float | None] | None:
    try:
        checkpoint = read_checkpoint(run_dir, name)
    except GmtoolError:
        return None
    return checkpoint.iteration, checkpoint.miou
