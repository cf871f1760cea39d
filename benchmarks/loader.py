"""Images/s of the labeled loader against decoding alone, in separate processes, in one run.

    uv run python benchmarks/loader.py [--workers 0] [--data DIR | --width 500 --height 375]

Decoding: `read_image` and `read_mask` alone, in a DataLoader with as many processes, which sends nothing back.
Loader: the labeled batches of training (decode, random crop, collate; crop 321, 6 images a batch). Cached: the
same with `data.cache=ram`, filled before. The three are interleaved over the same files; reported are the median
rate, and the median of the ratios within one round. Without --data: generated pictures of --width x --height
(500x375: JPEG of about 90 kB) with palette masks. DIR is a data set in VOC layout with `classes.json` and
`splits/labeled.txt`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gmtool_training.data.batches import labeled_batches
from gmtool_training.data.cache import open_readers
from gmtool_training.data.readers import LabeledReader, labeled_files
from torch.utils.data import DataLoader, Dataset

from gmtool.classes import ClassSet, load_classes
from gmtool.config import DataConfig
from gmtool.data.datasets import TrainingData, load_training_data
from gmtool.data.toy import ToyConfig, generate_toy

REPEATS = 9
BATCHES = 20
BOUND = 0.8


@dataclass(frozen=True)
class Decoded(Dataset[int]):
    """Decodes image and mask of a sample, and throws them away."""

    read: LabeledReader
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        self.read(index % self.count)
        return index


def decoding(data: TrainingData, classes: ClassSet, config: DataConfig) -> Iterator[Any]:
    """Return endless batches of decoded and dropped samples."""
    samples = data.labeled.samples
    decoded = Decoded(labeled_files(samples, classes, config), len(samples))
    loader: DataLoader[int] = DataLoader(
        decoded, config.labeled_batch, num_workers=config.workers or 0, persistent_workers=bool(config.workers)
    )
    while True:
        yield from loader


def loading(data: TrainingData, classes: ClassSet, config: DataConfig) -> Iterator[Any]:
    """Return the batches of training."""
    read = open_readers(data, classes, config).labeled
    return labeled_batches(data.labeled.samples, classes, config, seed=0, pin_memory=False, read=read)


def images_per_s(batches: Iterator[Any], config: DataConfig) -> float:
    """Return the rate of the next batches; those that wait in a queue are taken before."""
    for _ in range(2 * (config.workers or 0) + 1):
        next(batches)
    started = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    return BATCHES * config.labeled_batch / (time.perf_counter() - started)


def main() -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--images", type=int, default=240)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.data or Path(folder)
        if arguments.data is None:
            size = {"height_px": arguments.height, "width_px": arguments.width}
            generate_toy(root, ToyConfig(labeled=arguments.images, unlabeled=2, val=2, **size))
        labeled = root / "splits" / "labeled.txt"
        config = DataConfig(
            root=root, classes=str(root / "classes.json"), labeled=labeled, workers=arguments.workers
        )
        measure(config)


def measure(config: DataConfig) -> None:
    """Time the three kinds of batches in turn."""
    data, classes = load_training_data(config), load_classes(config.classes)
    kinds: dict[str, Callable[[], Iterator[Any]]] = {
        "decoding": lambda: decoding(data, classes, config),
        "loader": lambda: loading(data, classes, config),
        "loader, cached": lambda: loading(data, classes, replace(config, cache="ram")),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    sources = {name: make() for name, make in kinds.items()}
    for source in sources.values():
        next(source)
    for _ in range(REPEATS):
        for name, source in sources.items():
            rates[name].append(images_per_s(source, config))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: statistics.median(ours / bare for ours, bare in zip(values, rates["decoding"], strict=True))
        for name, values in rates.items()
    }
    print(f"{len(data.labeled.samples)} images, {config.workers} worker processes")
    for name, median in medians.items():
        print(f"{name:<15} {median:7.0f} images/s  {ratios[name]:5.2f} x decoding")
    print(f"bound for the loader: {BOUND} ({'met' if ratios['loader'] >= BOUND else 'MISSED'})")
    print(json.dumps({"workers": config.workers, "images_per_s": medians, "ratio": ratios}))


if __name__ == "__main__":
    main()
