"""The labeling loop end to end, with true masks in place of a person who corrects.

    uv run python benchmarks/labeling_loop.py DIR --out loop [--start 22] [--step 11] [--rounds 3]

DIR is a data set whose masks are known. Each round is the commands that a person would run: `data import` of the
labelme files so far, `train` (a linear probe, from the second round on with `--init`), `export`, `select` of the
images to label next with `--prelabel labelme`. Then labelme files of the true masks of the chosen images take the
place of corrected ones. The same is done with the strategy `random`. Printed: labels, mIoU on the validation
images, and the share of the pixels of the pre-annotations that a person need not change. A stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gmtool_serving.select.certainty import Strategy
from gmtool_training.recipes.configure import configure

import gmtool
from gmtool.api.data_set import find_data_set
from gmtool.classes import ClassSet, load_classes
from gmtool.data.datasets import load_training_data
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.data.splits import read_split
from gmtool.labels.dataset.importing import import_labels
from gmtool.labels.dataset.job import ImportOptions
from gmtool.labels.outlines import OutlineOptions
from gmtool.labels.writers.labelme import labelme_json
from gmtool.labels.writers.piece import make_piece
from gmtool.masks.files import read_mask

QUICK = {"probe.rounds": 0, "probe.scales": [1.0], "probe.input_scales": [1.0], "probe.head": "linear"}
"""Settings with which a round takes about a minute: labels alone, one scale, a linear classifier."""
EXACT = OutlineOptions(tolerance_px=0, min_area_px=0)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    for name, default in (("start", 22), ("step", 11), ("rounds", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--strategies", nargs="+", default=["coreset", "random"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data_set = find_data_set(str(asked.data), None, command="measure")
    config = configure(data_set.kind, {"data.root": data_set.root, **data_set.own_files()}).data
    classes, found = load_classes(config.classes), load_training_data(config)
    train = {sample.id: sample for sample in found.labeled.samples}
    order = np.random.default_rng(asked.seed).permutation(sorted(train)).tolist()
    for strategy in asked.strategies:
        folder = asked.out / strategy
        for sample in found.val.samples:
            label(sample, folder / "source/val", classes)
        for sample in train.values():
            link(sample, folder / "source/train")
        for name in order[: asked.start]:
            label(train[name], folder / "source/train", classes)
        for number in range(asked.rounds + 1):
            results = folder / f"round-{number}.json"
            if not results.is_file():
                line = run_round(folder, number, strategy, train, classes, asked)
                results.write_text(json.dumps(line) + "\n", encoding="utf-8")
            # A person corrects the chosen images
            for name in read_names(folder / f"next-{number}/selected.txt"):
                label(train[name], folder / "source/train", classes)
    print(table(asked.out, asked.strategies))


def run_round(
    folder: Path,
    number: int,
    strategy: str,
    train: dict[str, Sample],
    classes: ClassSet,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """Import, train, export and, but for the last round, select and pre-annotate; return the figures."""
    started = time.monotonic()
    options = ImportOptions(unlabeled_is="ignore", val_share=0.0, classes=write_classes(classes, folder))
    report = import_labels(folder / "source", folder / "data", options, progress=lambda items, _: iter(items))
    earlier = folder / f"run-{number - 1}" if number else None
    run = gmtool.train(
        str(folder / "data"),
        recipe="probe",
        settings=QUICK,
        init=earlier,
        seed=asked.seed,
        out=folder / f"run-{number}",
    )
    line = {"labels": report.labeled["train"], "miou": run.report.miou}
    if number < asked.rounds:
        model = gmtool.export(run, output="mask+confidence+embedding", parity=False).path
        chosen = gmtool.select(
            folder / "data/images/train",
            out=folder / f"next-{number}",
            model=model,
            count=asked.step,
            labeled=folder / "data/labeled.txt",
            strategy=cast("Strategy", strategy),
            seed=asked.seed + number,
            prelabel=["labelme", "voc"],
        )
        names = [Path(str(image.output)).name for image in chosen.chosen]
        line["kept"] = kept_share(folder / f"next-{number}/prelabel", [train[name] for name in names], classes)
    line["seconds"] = time.monotonic() - started
    print(f"{strategy}, round {number}: {line}", flush=True)
    return line


def write_classes(classes: ClassSet, folder: Path) -> str:
    """Write the classes for the import, so that their order is that of the data set; return the path."""
    path = folder / "classes.json"
    path.write_text(json.dumps(classes.to_dict()), encoding="utf-8")
    return str(path)


def link(sample: Sample, folder: Path) -> Path:
    """Link an image into the folder that the labeling tool shows."""
    path = folder / f"{Path(sample.id).name}{sample.image_path.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.symlink_to(sample.image_path.resolve())
    return path


def label(sample: Sample, folder: Path, classes: ClassSet) -> None:
    """Write the labelme file that a person would save who draws the true mask."""
    image = link(sample, folder)
    if not image.with_suffix(".json").is_file():
        piece = make_piece(image.name, read_truth(sample, classes, values="index"), classes, EXACT)
        image.with_suffix(".json").write_bytes(labelme_json(piece, image.name))


def kept_share(prelabel: Path, samples: Sequence[Sample], classes: ClassSet) -> float:
    """Return the share of the pixels with a true label whose predicted label is right."""
    right = known = 0
    for sample in samples:
        truth = read_truth(sample, classes, values="index")
        (path,) = prelabel.rglob(f"{Path(sample.id).name}.png")
        counted = truth != classes.ignore_index
        right += int((read_mask(path, classes) == truth)[counted].sum())
        known += int(counted.sum())
    return right / known


def read_names(path: Path) -> list[str]:
    """Return the ids of a list without folders; none if it was not written."""
    return [Path(entry.name).name for entry in read_split(path)] if path.is_file() else []


def table(out: Path, strategies: Sequence[str]) -> str:
    """Return the curves as Markdown."""
    rows = ["| strategy | labels | mIoU % | pre-annotated pixels right % | s |", "|---|---:|---:|---:|---:|"]
    for strategy in strategies:
        for path in sorted((out / strategy).glob("round-*.json")):
            line = json.loads(path.read_text(encoding="utf-8"))
            kept = f"{100 * line['kept']:.1f}" if "kept" in line else ""
            rows.append(
                f"| {strategy} | {line['labels']} | {100 * line['miou']:.2f} | {kept} | {line['seconds']:.0f} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
