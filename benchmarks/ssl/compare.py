"""Compare recipes on one data set: paired by split and seed, within one budget of compute, resumable.

    uv run python benchmarks/ssl/compare.py voc --data DIR --labels LIST --out runs/ssl --budget 3000 --seeds 0 1 2

A cell is one `gmtool train` in a folder of its own: OUT/SPLIT/VARIANT/seed-N. Started again, finished cells stay
and begun ones are resumed. The budget is in forward passes of the labeled half of a batch (a supervised step costs
3, the paper's 10: benchmarks/ssl/step_cost.py): every variant gets the same compute, not the same number of steps.

Variants are recipes, or tables of a TOML file given with --variants:

    [fixmatch-balanced]
    recipe = "fixmatch"
    "method.balance" = 0.5

Written: OUT/ssl.md, ssl.json, ssl.png: last-checkpoint mIoU (best beside it), mean, standard deviation, seconds of
training (validations and pauses included: compare them only on a machine that did nothing else), the paired
difference to --against with its 95 % interval (Student's t), and how much of the gap to training with all labels
it closes (with --all-labels, which also trains supervised with all labels).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmtool_training.recipes.configure import configure

from gmtool.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.ssl.step_cost import iterations_within, step_cost

ALL_LABELS = "all-labels"


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    recipe: str
    settings: Settings


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    variant: Variant
    split: str
    labels: Path | None
    seed: int

    def folder(self, out: Path) -> Path:
        """Return its run folder."""
        return out / self.split / self.variant.name / f"seed-{self.seed}"


@dataclass(frozen=True)
class Score:
    """Scores of a finished cell; mIoU in per cent."""

    variant: str
    split: str
    seed: int
    last: float
    best: float
    iterations: int
    step_cost: float
    seconds: float
    """From the first step to the last, validations and pauses included; after a resume those of the last slice."""
    config_sha256: str


def main() -> None:
    """Train unfinished cells, then report."""
    arguments = parse_arguments()
    cells = all_cells(arguments)
    missing = [cell for cell in cells if not (cell.folder(arguments.out) / "report.json").exists()]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} done", file=sys.stderr)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for cell, problem in zip(missing, pool.map(lambda cell: run(cell, arguments), missing), strict=True):
            print(f"{cell.folder(arguments.out)}: {problem or 'done'}", file=sys.stderr, flush=True)
    scores = [
        read_score(cell, arguments) for cell in cells if (cell.folder(arguments.out) / "report.json").exists()
    ]
    report(scores, arguments)


def parse_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", type=Path, nargs="+", required=True, help="one or more splits")
    parser.add_argument("--classes")
    parser.add_argument("--encoder-weights")
    parser.add_argument("--recipes", nargs="*", default=["supervised", "paper", "fixmatch"])
    parser.add_argument("--variants", type=Path, help="TOML file of further ones")
    parser.add_argument("--all-labels", action="store_true", help="train supervised with every label, too")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=float, required=True)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of every cell")
    parser.add_argument("--against", default="supervised")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each cell")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def all_cells(arguments: argparse.Namespace) -> list[Cell]:
    """Return the matrix, seed by seed, so that an early look has pairs."""
    variants = [Variant(name, name, {}) for name in arguments.recipes]
    tables = tomllib.loads(arguments.variants.read_text()) if arguments.variants else {}
    for name, table in tables.items():
        settings = {key: value for key, value in table.items() if key != "recipe"}
        variants.append(Variant(name, table["recipe"], settings))
    splits = [(path.parent.name if len(arguments.labels) > 1 else "split", path) for path in arguments.labels]
    cells = [
        Cell(variant, split, labels, seed)
        for seed in arguments.seeds
        for split, labels in splits
        for variant in variants
    ]
    if arguments.all_labels:
        upper = Variant(ALL_LABELS, "supervised", {})
        cells += [Cell(upper, split, None, seed) for seed in arguments.seeds for split, _ in splits]
    return cells


def iterations_of(cell: Cell, arguments: argparse.Namespace) -> tuple[int, float]:
    """Return the number of steps within the budget, and the cost of a step."""
    flags = {"data.root": arguments.data, "data.labeled": cell.labels}
    config = configure(
        arguments.kind, flags, recipe_name=cell.variant.recipe, settings=assignments_of(cell, arguments)
    )
    method, data = config.method, config.data
    return iterations_within(arguments.budget, method, data), step_cost(method, data)


def assignments_of(cell: Cell, arguments: argparse.Namespace) -> list[str]:
    """Return the settings of a cell as `--set` takes them."""
    return [*arguments.set, *(f"{name}={json.dumps(value)}" for name, value in cell.variant.settings.items())]


def run(cell: Cell, arguments: argparse.Namespace) -> str | None:
    """Train or resume a cell; return the error, or None."""
    folder = cell.folder(arguments.out)
    command = [sys.executable, "-m", "gmtool", "train"]
    if (folder / "checkpoints" / "last.json").exists():
        command += ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        command += [arguments.kind, "--recipe", cell.variant.recipe, "--data", str(arguments.data)]
        command += ["--out", str(folder), "--seed", str(cell.seed)]
        command += ["--iterations", str(iterations_of(cell, arguments)[0])]
        for option, value in (
            ("--labels", cell.labels),
            ("--classes", arguments.classes),
            ("--encoder-weights", arguments.encoder_weights),
        ):
            command += [option, str(value)] if value else []
        for assignment in assignments_of(cell, arguments):
            command += ["--set", assignment]
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    return None if done.returncode == 0 else f"exit code {done.returncode}: see {log.name}"


def read_score(cell: Cell, arguments: argparse.Namespace) -> Score:
    """Return the scores of a finished cell."""
    folder = cell.folder(arguments.out)
    value = json.loads((folder / "report.json").read_text())
    iterations, cost = iterations_of(cell, arguments)
    return Score(
        variant=cell.variant.name,
        split=cell.split,
        seed=cell.seed,
        last=100 * value["miou"],
        best=100 * (value["best"] or value)["miou"],  # the probe has one checkpoint
        iterations=iterations,
        step_cost=cost,
        seconds=last_seconds(folder / "metrics.jsonl"),
        config_sha256=hashlib.sha256((folder / "config.toml").read_bytes()).hexdigest(),
    )


def last_seconds(metrics: Path) -> float:
    """Return the time of a run's last log event, in seconds."""
    return float(json.loads(metrics.read_text().splitlines()[-1])["seconds"])


def report(scores: list[Score], arguments: argparse.Namespace) -> None:
    """Write the table, the figures and the plot."""
    names = list(dict.fromkeys(score.variant for score in scores))
    rows = [summary(name, scores, arguments.against) for name in names]
    value = {
        "command": " ".join(sys.argv[1:]),
        "budget": arguments.budget,
        "against": arguments.against,
        "rows": rows,
        "cells": [asdict(score) for score in scores],
    }
    (arguments.out / "ssl.json").write_text(json.dumps(value, indent=1) + "\n")
    table = to_markdown(rows, scores, arguments)
    (arguments.out / "ssl.md").write_text(table)
    if scores:
        draw(rows, scores, arguments.out / "ssl.png", against=arguments.against)
    print(table)


def summary(name: str, scores: list[Score], against: str) -> dict[str, Any]:
    """Return mean, deviation, paired difference and closed gap of one variant."""
    own = {(score.split, score.seed): score for score in scores if score.variant == name}
    base = {(score.split, score.seed): score.last for score in scores if score.variant == against}
    upper = {(score.split, score.seed): score.last for score in scores if score.variant == ALL_LABELS}
    last = [score.last for score in own.values()]
    differences = [score.last - base[key] for key, score in own.items() if key in base]
    gap = statistics.fmean(upper.values()) - statistics.fmean(base.values()) if upper and base else None
    mean_difference = statistics.fmean(differences) if differences else None
    return {
        "variant": name,
        "runs": len(last),
        "iterations": next(iter(own.values())).iterations,
        "step_cost": next(iter(own.values())).step_cost,
        "seconds": statistics.fmean(score.seconds for score in own.values()),
        "last": statistics.fmean(last),
        "deviation": statistics.stdev(last) if len(last) > 1 else None,
        "best": statistics.fmean(score.best for score in own.values()),
        "pairs": len(differences),
        "difference": mean_difference,
        "interval": half_interval(differences),
        "gap_closed": mean_difference / gap if gap and mean_difference is not None else None,
    }


def half_interval(differences: list[float]) -> float | None:
    """Return half of the 95 % interval of a mean of paired differences (Student's t); None for fewer than two."""
    from scipy.stats import t

    count = len(differences)
    if count < 2:
        return None
    return float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)


def to_markdown(rows: list[dict[str, Any]], scores: list[Score], arguments: argparse.Namespace) -> str:
    """Return the table for people, and the run folder behind each figure."""
    lines = [
        f"mIoU %, last checkpoint; budget {arguments.budget:g} forward passes; difference to {arguments.against}, "
        "paired by split and seed, with its 95 % interval.",
        "",
        "| variant | runs | steps | cost of a step | seconds | last | sd | best | difference | gap closed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        plain = row["variant"] == arguments.against or row["difference"] is None
        interval = "" if row["interval"] is None else f" ± {row['interval']:.2f}"
        difference = "" if plain else f"{row['difference']:+.2f}{interval}"
        gap = "" if row["gap_closed"] is None or plain else f"{row['gap_closed']:.0%}"
        deviation = "" if row["deviation"] is None else f"{row['deviation']:.2f}"
        lines.append(
            f"| {row['variant']} | {row['runs']} | {row['iterations']} | {row['step_cost']:g} | "
            f"{row['seconds']:.0f} | {row['last']:.2f} | {deviation} | {row['best']:.2f} | {difference} | {gap} |"
        )
    lines += ["", "| run | last | best | sha256 of config.toml |", "|---|---:|---:|---|"]
    for score in scores:
        run_name = f"{score.split}/{score.variant}/seed-{score.seed}"
        lines.append(f"| {run_name} | {score.last:.2f} | {score.best:.2f} | `{score.config_sha256[:12]}` |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], scores: list[Score], path: Path, *, against: str) -> None:
    """Draw every run as a dot, and each variant's mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.5 * len(rows)), dpi=110, layout="constrained", facecolor="white")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        own = [score.last for score in scores if score.variant == row["variant"]]
        color = "#888888" if row["variant"] == against else "#0072b2"
        axes.plot(own, [place] * len(own), "o", color=color, alpha=0.5)
        axes.plot([row["last"]] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2.5)
    base = next((row["last"] for row in rows if row["variant"] == against), None)
    if base is not None:
        axes.axvline(base, color="#888888", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("mIoU of the last checkpoint, % (bar: mean)")
    axes.grid(visible=True, axis="x", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
