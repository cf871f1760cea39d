"""What `gmtool train DIR` gives for few labels in M minutes, against other ways; paired by seed, resumable.

    uv run python benchmarks/ssl/few_labels.py DIR --labels LIST --all-labels LIST --out runs/few --seeds 0 1 2

Each run is one `gmtool train` in OUT/VARIANT/seed-N; started again, finished runs stay. Variants:

    default     gmtool train DIR --labels LIST --minutes M, and nothing else set
    alone       the same without unlabeled images
    all-labels  the same with every training image labeled: what is there to gain
    alone@1.5   a variant in other minutes than --minutes
    fixmatch    FixMatch with the same encoder, decoder, input scale and about the same time, by gradient steps
    supervised  gradient steps on labels alone, with the same encoder, decoder and input scale
    kept        the same with features of 16 crops of each image kept

Written: OUT/few_labels.md and .json: mIoU % of the last checkpoint on the validation images, processor and wall
time, peak memory, the first digits of the config's hash, gradient steps a second without validations; means with
95 % intervals (Student's t), what unlabeled images add, and the share of the gap to all labels that they close.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import scipy.stats

from gmtool.settings import load_config

GRADIENT_STEPS = {
    "model.encoder": "timm:tf_efficientnet_lite2",
    "model.output_stride": "16",
    "model.decoder": "pyramid",
    "model.decoder_channels": "256",
    "optim.freeze_encoder": "true",
    "optim.lr": "0.01",
    "optim.head_lr_multiplier": "1.0",
    "run.precision": "32-true",
    "run.validations": "1",
    "data.labeled_batch": "4",
    "data.unlabeled_batch": "4",
    "data.workers": "0",
    "data.cache": "ram",
}
"""Settings of the gradient recipes; crop and iterations are options."""
KEPT = {"data.kept_crops": "16"}


@dataclass(frozen=True)
class Run:
    """One finished run."""

    variant: str
    seed: int
    miou: float
    """Per cent, last checkpoint."""
    processor_s: float
    wall_s: float
    peak_gb: float
    config: str
    steps_per_s: float | None = None
    """Of gradient steps on labels alone; else None."""


def arguments_of(variant: str, options: argparse.Namespace, seed: int, out: Path) -> list[str]:
    """Return the arguments of `gmtool train` for one run."""
    variant, _, minutes = variant.partition("@")
    labels = options.all_labels if variant == "all-labels" else options.labels
    shared = [str(options.data), "--labels", str(labels), "--seed", str(seed), "--out", str(out)]
    if options.classes is not None:
        shared += ["--classes", str(options.classes)]
    if variant not in ("fixmatch", "supervised", "kept"):
        alone = [] if variant == "default" else ["--set", "probe.rounds=0"]
        return [*shared, "--minutes", minutes or f"{options.minutes:g}", *alone]
    chosen = load_config(options.out / "default" / f"seed-{seed}" / "config.toml").model
    settings = {
        **GRADIENT_STEPS,
        **(KEPT if variant == "kept" else {}),
        "model.input_scale": f"{chosen.input_scale:g}",
        "data.crop_px": str(options.crop),
    }
    assigned = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    recipe = "fixmatch" if variant == "fixmatch" else "supervised"
    steps = options.fixmatch_iterations if variant == "fixmatch" else options.steps
    return [*shared, "--recipe", recipe, "--iterations", str(steps), *assigned]


def train(variant: str, options: argparse.Namespace, seed: int) -> Run:
    """Train one run, or read what it gave before."""
    folder = options.out / variant / f"seed-{seed}"
    figures = folder.with_suffix(".json")
    if not figures.is_file():
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "gmtool", "train", *arguments_of(variant, options, seed, folder)]
        started = time.monotonic()
        with folder.with_suffix(".log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{folder.with_suffix('.log')}: the run failed")
        report = json.loads((folder / "report.json").read_text())
        run = Run(
            variant,
            seed,
            100 * report["miou"],
            usage.ru_utime + usage.ru_stime,
            time.monotonic() - started,
            usage.ru_maxrss / 2**20,
            hashlib.sha256((folder / "config.toml").read_bytes()).hexdigest()[:12],
            steps_per_s(folder),
        )
        figures.write_text(json.dumps(asdict(run)))
    return Run(**json.loads(figures.read_text()))


def steps_per_s(folder: Path) -> float | None:
    """Return the steps a second of a run on labels alone by gradient steps, without validations; else None."""
    config = load_config(folder / "config.toml")
    if config.method.name != "supervised":
        return None
    done, seconds = 0, 0.0
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "train":
            seconds += (event["iteration"] - done) * config.data.labeled_batch / event["images_per_s"]
            done = event["iteration"]
    return done / seconds


def interval(values: Sequence[float]) -> str:
    """Return mean and half of the 95 % interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.2f} ± {half:.2f}"


def differences(runs: Sequence[Run], one: str, other: str) -> list[float]:
    """Return the paired differences of two variants."""
    scores = {(run.variant, run.seed): run.miou for run in runs}
    seeds = sorted({run.seed for run in runs})
    pairs = [(scores.get((one, seed)), scores.get((other, seed))) for seed in seeds]
    return [first - second for first, second in pairs if first is not None and second is not None]


def to_markdown(runs: Sequence[Run]) -> str:
    """Return the table of all runs, means and differences."""
    lines = [
        "| variant | seed | mIoU % | processor s | wall s | peak GB | steps/s | config |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for run in runs:
        speed = "-" if run.steps_per_s is None else f"{run.steps_per_s:.2f}"
        lines.append(
            f"| {run.variant} | {run.seed} | {run.miou:.2f} | {run.processor_s:.0f} | {run.wall_s:.0f} | "
            f"{run.peak_gb:.1f} | {speed} | `{run.config}` |"
        )
    lines.append("")
    for variant in dict.fromkeys(run.variant for run in runs):
        lines.append(f"- {variant}: {interval([run.miou for run in runs if run.variant == variant])}")
    for one, other in (("default", "alone"), ("default", "fixmatch"), ("kept", "supervised")):
        if gained := differences(runs, one, other):
            lines.append(f"- {one} over {other}: {interval(gained)}")
    gaps, gained = differences(runs, "all-labels", "alone"), differences(runs, "default", "alone")
    if gaps and len(gaps) == len(gained):
        closed = statistics.mean(gained) / statistics.mean(gaps)
        lines.append(f"- share of the gap from labels alone to all labels that is closed: {100 * closed:.0f} %")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all variants with all seeds and write the tables after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--all-labels", type=Path, required=True)
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=["default", "alone", "fixmatch", "all-labels"])
    parser.add_argument("--fixmatch-iterations", type=int, default=400)
    parser.add_argument("--steps", type=int, default=600, help="Of supervised and kept.")
    parser.add_argument("--crop", type=int, default=208, help="Of gradient steps, px.")
    options = parser.parse_args()
    runs: list[Run] = []
    for variant in options.variants:
        for seed in options.seeds:
            runs.append(train(variant, options, seed))
            print(
                f"{runs[-1].variant} seed {seed}: {runs[-1].miou:.2f} %, {runs[-1].processor_s:.0f} s", flush=True
            )
            (options.out / "few_labels.md").write_text(to_markdown(runs))
            (options.out / "few_labels.json").write_text(json.dumps([asdict(run) for run in runs], indent=1))
    print(to_markdown(runs))


if __name__ == "__main__":
    main()
