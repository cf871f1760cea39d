"""Confusion matrix and IoU over masks of Cityscapes' size, beside torchmetrics and cityscapesScripts, in one run.

    uv run python benchmarks/metrics.py [--masks 500] [--distinct 24] [--noise]

Masks are 2048x1024, 19 classes and ignored regions, generated: curved regions with fine contours, predictions
that are right for about three quarters of the pixels. They are decoded, in memory, and cycled. Each program gets
what it takes fastest: ours and the script uint8 arrays, torchmetrics uint8 tensors on one thread, without and with
its own checks of its input (the bound is against the faster). cityscapesScripts is its pure-Python fallback
(`addToConfusionMatrix` not built), reading from memory, not from files. The programs are interleaved over the
same masks, and all must give the same matrix; seconds for --masks are scaled from these, but for ours, which then
counts all of them. --noise: a label drawn for each pixel, which real masks never are.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_confusion_matrix

from gmtool.classes import load_classes
from gmtool.images import UInt8Array
from gmtool.report.metrics import Int64Array, confusion_matrix, iou_per_class

HEIGHT, WIDTH, CLASSES, IGNORED = 1024, 2048, 19, 255
ROUNDS = 15
BOUNDS = {"torchmetrics": 3.0, "cityscapesScripts": 10.0}


def generate(seed: int, *, noise: bool) -> tuple[UInt8Array, UInt8Array]:
    """Return ground truth and prediction, (HEIGHT, WIDTH) uint8."""
    random = np.random.default_rng(seed)
    if noise:
        truth = random.integers(0, CLASSES, (HEIGHT, WIDTH), dtype=np.uint8)
        prediction = random.integers(0, CLASSES, (HEIGHT, WIDTH), dtype=np.uint8)
    else:
        fields = np.stack([_field(random, 128) + 0.15 * _field(random, 32) for _ in range(CLASSES)])
        truth = fields.argmax(axis=0).astype(np.uint8)
        errors = np.stack([_field(random, 32) for _ in range(CLASSES)])
        prediction = (fields + 0.25 * errors).argmax(axis=0).astype(np.uint8)
    void = random.random((HEIGHT // 32, WIDTH // 32)) < 0.08
    truth[void.repeat(32, 0).repeat(32, 1)] = IGNORED
    return truth, prediction


def _field(random: np.random.Generator, period_px: int) -> np.ndarray:
    """Return a smooth random field, (HEIGHT, WIDTH)."""
    coarse = random.normal(size=(HEIGHT // period_px + 1, WIDTH // period_px + 1))
    image = Image.fromarray(coarse.astype(np.float32))
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def ours(truth: UInt8Array, prediction: UInt8Array) -> Int64Array:
    """Return gmtool's matrix."""
    return confusion_matrix(truth, prediction, num_classes=CLASSES, ignore_index=IGNORED)


def theirs(truth: UInt8Array, prediction: UInt8Array, *, checks: bool) -> Int64Array:
    """Return torchmetrics' matrix."""
    matrix = multiclass_confusion_matrix(
        torch.from_numpy(prediction),
        torch.from_numpy(truth),
        num_classes=CLASSES,
        ignore_index=IGNORED,
        validate_args=checks,
    )
    counts: Int64Array = matrix.numpy()
    return counts


def scripts(truth_ids: UInt8Array, prediction_ids: UInt8Array) -> Int64Array:
    """Return the matrix of cityscapesScripts over label ids, of the evaluated ones."""
    official = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")

    class InMemory(np.ndarray):
        """A label map that has the size of an image."""

        @property
        def size(self) -> tuple[int, int]:  # type: ignore[override]
            return WIDTH, HEIGHT

    images = {"prediction": prediction_ids.view(InMemory), "truth": truth_ids.view(InMemory)}
    matrix = official.generateMatrix(official.args)
    switches = {"evalInstLevelScore": False, "evalPixelAccuracy": False}
    patches: list[Any] = [
        mock.patch.object(official, "CSUPPORT", False),
        mock.patch.object(official.Image, "open", images.get),
    ]
    patches += [mock.patch.object(official.args, name, value) for name, value in switches.items()]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        official.evaluatePair("prediction", "truth", matrix, {}, {}, official.args)
    evaluated = list(load_classes("cityscapes").raw_ids)
    counts: Int64Array = matrix[np.ix_(evaluated, evaluated)].astype(np.int64)
    return counts


def main() -> None:
    """Print a table and the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--distinct", type=int, default=24)
    parser.add_argument("--noise", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [generate(seed, noise=arguments.noise) for seed in range(arguments.distinct)]
    ids = np.zeros(256, dtype=np.uint8)
    ids[:CLASSES] = load_classes("cityscapes").raw_ids
    official_pairs = [(ids[truth], ids[prediction]) for truth, prediction in pairs]
    programs: dict[str, Callable[[int], Int64Array]] = {
        "gmtool": lambda index: ours(*pairs[index]),
        "torchmetrics": lambda index: theirs(*pairs[index], checks=False),
        "torchmetrics, checks on": lambda index: theirs(*pairs[index], checks=True),
        "cityscapesScripts": lambda index: scripts(*official_pairs[index]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for index in range(ROUNDS + 1):
        expected = None
        for name, program in programs.items():
            started = time.perf_counter()
            matrix = program(index % len(pairs))
            spent = time.perf_counter() - started
            if index:  # the first round warms up
                seconds[name].append(spent)
            expected = matrix if expected is None else expected
            assert (matrix == expected).all(), name
    ratios = {
        name: statistics.median(other / own for other, own in zip(spent, seconds["gmtool"], strict=True))
        for name, spent in seconds.items()
    }
    started = time.perf_counter()
    total = sum(
        (ours(*pairs[index % len(pairs)]) for index in range(arguments.masks)), np.zeros((19, 19), np.int64)
    )
    iou_per_class(total)
    whole = time.perf_counter() - started
    print(f"{'program':26}{'ms a mask':>10}{'s for ' + str(arguments.masks):>14}{'times gmtool':>14}")
    typical = {name: statistics.median(spent) for name, spent in seconds.items()}
    for name, each in typical.items():
        print(f"{name:26}{1000 * each:10.1f}{arguments.masks * each:14.1f}{ratios[name]:14.1f}")
    print(f"gmtool, {arguments.masks} masks counted and IoU computed: {whole:.2f} s")
    for name, bound in BOUNDS.items():
        print(
            f"{name}: {ratios[name]:.1f} times, bound {bound:g}: {'held' if ratios[name] >= bound else 'MISSED'}"
        )
    print(json.dumps({"ratios": ratios, "seconds": typical}))


if __name__ == "__main__":
    main()
