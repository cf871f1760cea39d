"""Strategies of `gmtool select` against random, on a data set whose masks are known.

    uv run python benchmarks/select_curve.py DIR --out curve.jsonl [--seeds 5] [--strategies default random ...]

From 22 labels in rounds of 11: a linear probe of the frozen encoder is fitted to the labels, the rest of the
training images is measured and chosen from by the code of `gmtool select`, and the masks of the chosen images are
added. The encoder's features of sampled pixels are computed once and kept beside the results. Every strategy
begins with the same 22 images of a seed; random is drawn three times a seed. Scores are mean IoUs of sampled
pixels of the validation images. One line a curve goes into the results; a stopped run goes on where it was.

Names that end in `-encoder` measure distances between mean features of the encoder instead of the vectors of
`gmtool select`, which needs no second network.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from gmtool_serving.select.appearance import appearance_of
from gmtool_serving.select.certainty import Strategy, disagreement, entropy_certainty, margin
from gmtool_serving.select.choose import choose
from gmtool_serving.select.measure import Measures
from gmtool_training.probe.bank import View, features_at
from gmtool_training.probe.collect import class_pixel_weights
from gmtool_training.probe.head import Head, Rows, fit_linear
from gmtool_training.probe.self_training import mean_iou
from gmtool_training.recipes.configure import configure
from torch import Tensor

from gmtool.api.data_set import find_data_set
from gmtool.classes import ClassSet, load_classes
from gmtool.config import TrainConfig
from gmtool.data.datasets import load_training_data
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.nn.checkpoint import build_network
from gmtool.nn.weights import load_encoder_weights
from gmtool.progress import track

DRAWS_OF_RANDOM = 3
ENCODER = "-encoder"
STRATEGIES = (*get_args(Strategy), *(f"{name}{ENCODER}" for name in ("mixed", "coreset", "kmeans++")))


@dataclass(frozen=True)
class Images:
    """Features and labels of sampled pixels of a set of images, and small vectors of them."""

    features: Tensor
    """(V, N, P, D) float16: views, images, pixels."""
    labels: npt.NDArray[np.uint8]
    """(N, P)."""
    thumbnails: npt.NDArray[np.uint8]
    appearance: npt.NDArray[np.float32]

    @property
    def means(self) -> npt.NDArray[np.float16]:
        """(N, D): mean features of the sampled pixels of each image."""
        return cast("npt.NDArray[np.float16]", self.features[0].float().mean(dim=1).half().numpy())


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--start", type=int, default=22)
    parser.add_argument("--step", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pixels", type=int, default=150)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data_set = find_data_set(str(asked.data), None, command="measure")
    flags = {"data.root": data_set.root, **data_set.own_files()}
    config = configure(data_set.kind, flags, recipe_name="probe")
    classes = load_classes(config.data.classes)
    train, val = (
        cached(asked.out.with_suffix(f".{part}.npz"), part, config, classes, pixels)
        for part, pixels in (("train", asked.pixels), ("val", 10 * asked.pixels))
    )
    known = {key_of(line) for line in read_lines(asked.out)}
    # Seeds first, so that a run that is stopped has all strategies of some seeds
    wanted = [
        (strategy, seed, draw)
        for seed in range(asked.seeds)
        for strategy in asked.strategies
        for draw in range(DRAWS_OF_RANDOM if strategy == "random" else 1)
    ]
    for key in wanted:
        if key not in known:
            line = curve(*key, train=train, val=val, classes=classes, config=config, asked=asked)
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    print(table(read_lines(asked.out)))


def cached(path: Path, part: str, config: TrainConfig, classes: ClassSet, pixels: int) -> Images:
    """Return features of all images of a part, computed once."""
    if not path.is_file():
        found = load_training_data(config.data)
        samples = found.labeled.samples if part == "train" else found.val.samples
        images = compute(samples, config, classes, pixels, views=2 if part == "train" else 1)
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(images).items()}
        np.savez(path, **arrays)
    with np.load(path) as arrays:
        return Images(torch.from_numpy(arrays["features"]), *(arrays[name] for name in list(arrays)[1:]))


def compute(
    samples: tuple[Sample, ...], config: TrainConfig, classes: ClassSet, pixels: int, *, views: int
) -> Images:
    """Return features of pixels drawn evenly from each image, and of the same pixels of the mirror image."""
    network = build_network(config.model, classes)
    load_encoder_weights(network.encoder, config.model.encoder, config.model.encoder_weights)
    network.eval()
    random = np.random.default_rng(0)
    columns: dict[str, list[Any]] = defaultdict(list)
    for sample in track(samples, total=len(samples)):
        image = sample.read_image()
        truth = read_truth(sample, classes, values=config.data.mask_values, size=image.shape[:2])
        rows, places = (random.integers(side, size=pixels) for side in image.shape[:2])
        at = torch.from_numpy(rows), torch.from_numpy(places)
        kinds = [View(1.0, flip) for flip in (False, True)[:views]]
        columns["features"].append(torch.stack([features_at(network, image, view, *at) for view in kinds]))
        columns["labels"].append(truth[rows, places])
        thumbnail, appearance = appearance_of(image)
        columns["thumbnails"].append(thumbnail)
        columns["appearance"].append(appearance)
    features = torch.stack(columns.pop("features"), dim=1)
    return Images(features, **{name: np.stack(values) for name, values in columns.items()})


def curve(
    strategy: str,
    seed: int,
    draw: int,
    *,
    train: Images,
    val: Images,
    classes: ClassSet,
    config: TrainConfig,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """Return the scores of one strategy from one start."""
    started = time.monotonic()
    labeled = np.random.default_rng(seed).permutation(len(train.labels))[: asked.start].tolist()
    scores, counts = [], []
    for number in range(asked.rounds + 1):
        head = fit(train, labeled, classes, config)
        counts.append(len(labeled))
        scores.append(score(head, val, classes))
        if number == asked.rounds:
            break
        measures = measure(head, train, classes, strategy)
        found = choose(
            measures,
            asked.step,
            strategy=cast("Strategy", strategy.removesuffix(ENCODER)),
            labeled=labeled,
            seed=1000 * seed + 100 * draw + number,
            duplicate_levels=8.0,
        )
        labeled += found.chosen
    seconds = time.monotonic() - started
    print(
        f"{strategy} {seed}.{draw}: {' '.join(f'{100 * one:.1f}' for one in scores)} ({seconds:.0f} s)", flush=True
    )
    return {"strategy": strategy, "seed": seed, "draw": draw, "labels": counts, "miou": scores}


def fit(train: Images, labeled: list[int], classes: ClassSet, config: TrainConfig) -> Head:
    """Return a linear classifier of the labeled images, classes weighted as in the recipe."""
    labels = torch.from_numpy(train.labels[labeled]).reshape(-1).long()
    known = labels < len(classes)
    counts = torch.bincount(labels[known], minlength=len(classes))
    weights = class_pixel_weights(counts, balance=config.probe.balance)
    targets = torch.zeros(int(known.sum()), len(classes))
    targets[torch.arange(len(targets)), labels[known]] = weights[labels[known]]
    features = train.features[0, labeled].flatten(0, 1)[known]
    return fit_linear([Rows((features,), targets)])


@torch.inference_mode()
def logits_of(head: Head, features: Tensor, classes: int) -> npt.NDArray[np.float32]:
    """Return the logits of (N, P, D) features: (N, C, P)."""
    rows = features.flatten(0, 1)
    found = torch.cat([head.layers(head.scaling(some)) for some in torch.split(rows, 8192)])
    return cast(
        "npt.NDArray[np.float32]",
        found.reshape(*features.shape[:2], classes).permute(0, 2, 1).contiguous().numpy(),
    )


def measure(head: Head, train: Images, classes: ClassSet, strategy: str) -> Measures:
    """Return the measurements of all images that `gmtool select` would make, of their sampled pixels."""
    first = logits_of(head, train.features[0], len(classes))[:, :, None]
    if strategy == "bald":
        second = logits_of(head, train.features[1], len(classes))[:, :, None]
        certainty = [1 - disagreement(one, other) for one, other in zip(first, second, strict=True)]
    else:
        formula = margin if strategy == "margin" else entropy_certainty
        certainty = [formula(one) for one in first]
    lacking = 255 - np.rint(255 * np.stack(certainty)[:, 0])
    mask = first.argmax(axis=1)[:, 0]
    count, size = mask.shape
    place = np.arange(count)[:, None] * len(classes) + mask
    shares = np.bincount(place.ravel(), minlength=count * len(classes)).reshape(count, -1) / size
    doubt = np.bincount(place.ravel(), weights=lacking.ravel(), minlength=count * len(classes)) / (255 * size)
    measures = Measures(
        cast("Any", range(count)),
        np.ones(count, dtype=np.bool_),
        shares.astype(np.float32),
        doubt.reshape(count, -1).astype(np.float32),
        train.appearance,
        train.thumbnails,
        {},
    )
    if not strategy.endswith(ENCODER):
        return measures
    return replace(measures, embedding=train.means)


def score(head: Head, val: Images, classes: ClassSet) -> float:
    """Return the mean IoU of the sampled pixels of the validation images, in [0, 1]."""
    predicted = logits_of(head, val.features[0], len(classes)).argmax(axis=1)
    known = val.labels < len(classes)
    pairs = val.labels[known].astype(np.int64) * len(classes) + predicted[known]
    matrix = np.bincount(pairs, minlength=len(classes) ** 2).reshape(len(classes), -1)
    return mean_iou(torch.from_numpy(matrix))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the curves that were measured."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def key_of(line: dict[str, Any]) -> tuple[str, int, int]:
    """Return what a line is of."""
    return line["strategy"], line["seed"], line["draw"]


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table: means over seeds, and the area under each curve against random of the same seed."""
    areas: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    scores: dict[str, list[list[float]]] = defaultdict(list)
    for line in lines:
        areas[line["strategy"]][line["seed"]].append(area(line))
        scores[line["strategy"]].append(line["miou"])
    counts = lines[0]["labels"]
    titles = ["strategy", *map(str, counts), "area", "against random", "95 % interval", "seeds better"]
    rows = [f"| {' | '.join(titles)} |", f"|---{'|---:' * (len(titles) - 1)}|"]
    for name in sorted(areas, key=lambda one: -float(np.mean([np.mean(each) for each in areas[one].values()]))):
        means = 100 * np.mean(scores[name], axis=0)
        by_seed = {seed: float(np.mean(each)) for seed, each in areas[name].items()}
        cells = [name, *(f"{one:.1f}" for one in means), f"{100 * np.mean(list(by_seed.values())):.2f}"]
        shared = sorted(set(by_seed) & set(areas["random"]))
        gains = 100 * np.array([by_seed[seed] - np.mean(areas["random"][seed]) for seed in shared])
        if name == "random" or len(gains) < 2:
            cells += ["", "", ""]
        else:
            half = scipy.stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5
            low, high = gains.mean() - half, gains.mean() + half
            cells += [f"{gains.mean():+.2f}", f"{low:+.2f} to {high:+.2f}", f"{(gains > 0).sum()} of {len(gains)}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def area(line: dict[str, Any]) -> float:
    """Return the area under a curve over its range of labels: the mean score, in [0, 1]."""
    return float(np.trapezoid(line["miou"], line["labels"]) / (line["labels"][-1] - line["labels"][0]))


if __name__ == "__main__":
    main()
