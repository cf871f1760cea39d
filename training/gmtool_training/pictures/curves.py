"""Training curves of a run (`training.png`), drawn from `metrics.jsonl`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gmtool.artifact.run_record import read_events
from gmtool.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Event = Mapping[str, Any]
Series = npt.NDArray[np.float64]

PICTURE_NAME = "training.png"
EVENTS_SMOOTHED = 150
"""Number of events above which a running mean is drawn over the pale single events."""

COLORS = {
    "total": "#222222",
    "cross-entropy": "#0072b2",
    "image classes": "#009e73",
    "labeled pairs": "#e69f00",
    "ω · unlabeled": "#d55e00",
}


def draw_training(run_dir: Path) -> Path:
    """Draw losses, validation mIoU, learning rate and ω of a run so far; return the path of the picture.

    Works in threads and without a display. A half-written line of a killed process is skipped.

    Raises:
        CheckpointError: `run_dir` has no `metrics.jsonl`.
    """
    figure = training_figure(read_events(run_dir), title=run_dir.name)
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", pil_kwargs={"compress_level": 1}
    )  # a third of the time is its compression
    path = run_dir / PICTURE_NAME
    write_atomically(path, buffer.getvalue())
    return path


def training_figure(events: Sequence[Event], *, title: str) -> Figure:
    """Return four panels over the iterations: loss terms, validation mIoU, learning rate, ω.

    Args:
        events: Events of `RunLog.event`; None is a gap.
        title: Title of the figure.
    """
    # Not pyplot, which has global state and needs a display
    from matplotlib.figure import Figure

    train = [event for event in events if event.get("kind") == "train"]
    val = [event for event in events if event.get("kind") == "val"]
    figure = Figure(figsize=(9, 10), dpi=110, facecolor="white")
    figure.suptitle(title, fontweight="bold")
    panels = figure.subplots(4, 1, sharex=True, height_ratios=(4, 3, 1.3, 1.3))
    # Fixed margins: automatic layout would take half of the time
    figure.subplots_adjust(left=0.08, right=0.98, top=0.95, bottom=0.05, hspace=0.1)
    for panel in panels:
        panel.grid(visible=True, color="#e4e4e4", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    _draw_losses(panels[0], train)
    _draw_miou(panels[1], val)
    iterations = _series(train, "iteration")
    panels[2].plot(iterations, _series(train, "lr"), color="#555555", marker=_marker(train))
    panels[2].set_ylabel("learning rate")
    panels[2].ticklabel_format(axis="y", scilimits=(-2, 3))
    panels[3].plot(iterations, _series(train, "omega"), color=COLORS["ω · unlabeled"], marker=_marker(train))
    panels[3].set_ylabel("ω")
    for panel in panels[2:]:
        panel.set_ylim(bottom=0)
    panels[3].set_xlabel("iteration")
    panels[3].set_xlim(left=0)
    return figure


def _draw_losses(panel: Axes, train: Sequence[Event]) -> None:
    iterations = _series(train, "iteration")
    terms = {
        "total": _series(train, "loss"),
        "cross-entropy": _series(train, "ce"),
        "image classes": _series(train, "cla"),
        "labeled pairs": _series(train, "dec"),
        "ω · unlabeled": _series(train, "omega") * _series(train, "usup"),
    }
    window = max(1, len(train) // 50) if len(train) > EVENTS_SMOOTHED else 1
    for name, values in terms.items():
        positive = np.where(values > 0, values, np.nan)  # unused terms are 0, which a log scale cannot show
        color, width = COLORS[name], 2.0 if name == "total" else 1.5
        if window > 1:
            panel.plot(iterations, positive, color=color, alpha=0.2, linewidth=0.6)
        mean = _running_mean(positive, window) if window > 1 else positive
        panel.plot(iterations, mean, color=color, linewidth=width, label=name, marker=_marker(train))
    if any((values > 0).any() for values in terms.values()):
        panel.set_yscale("log")
    panel.set_ylabel("loss" if window == 1 else f"loss (mean of {window} events)")
    panel.legend(loc="upper right", ncols=len(terms), fontsize="small", frameon=True, framealpha=0.85)
    panel.margins(y=0.15)


def _draw_miou(panel: Axes, val: Sequence[Event]) -> None:
    iterations, miou = _series(val, "iteration"), 100 * _series(val, "miou")
    last = f"last {miou[-1]:.2f} %" if len(miou) and np.isfinite(miou[-1]) else "last: not defined"
    color = COLORS["cross-entropy"]
    panel.plot(iterations, miou, color=color, marker="o", markersize=4, label=last if len(miou) else None)
    panel.set_ylabel("validation mIoU, %")
    if np.isfinite(miou).any():
        best = int(np.nanargmax(miou))
        label = f"best {miou[best]:.2f} % at {iterations[best]:.0f}"
        star = COLORS["labeled pairs"]
        panel.plot(iterations[best], miou[best], "*", color=star, markersize=14, zorder=3, label=label)
    if len(miou):
        panel.legend(loc="lower right", fontsize="small", framealpha=0.85)
    panel.margins(y=0.15)


def _series(events: Sequence[Event], name: str) -> Series:
    """Return the values of one key, (N,) float64; missing, None and infinite values are NaN."""
    values = np.array([np.nan if (value := event.get(name)) is None else float(value) for event in events])
    return np.where(np.isfinite(values), values, np.nan)


def _running_mean(values: Series, window: int) -> Series:
    """Return the mean of the `window` values around each value without NaN; NaN stays NaN."""
    known = np.isfinite(values)
    box = np.ones(window)
    total = np.convolve(np.where(known, values, 0), box, mode="same")
    count = np.convolve(known, box, mode="same")
    return np.where(known, total / np.maximum(count, 1), np.nan)


def _marker(events: Sequence[Event]) -> str:
    return "o" if len(events) == 1 else ""  # a line of one point is invisible
