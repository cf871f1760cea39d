"""Classifiers of the probe: multinomial regression by L-BFGS, or one hidden layer by AdamW."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gmtool.nn.pyramid_decoder import PyramidDecoder
from gmtool.resources import available_memory

CPU = torch.device("cpu")

STATISTICS_ROWS = 50_000
"""Rows from which mean and deviation of the features are computed, at most."""

LINEAR_ROWS = 100_000
"""Rows that a multinomial regression takes all at once; of more, every n-th one. 0.5 GB in EfficientNet-Lite2."""
LINEAR_SHARE = 0.25
"""Share of the memory that is free which they may take."""
LEAST_LINEAR_ROWS = 5_000
"""Rows that are always taken."""
LINEAR_ITERATIONS = 40
"""Iterations of L-BFGS in a multinomial regression, at most."""
BATCH_NORM_EPS = 1e-5
"""What torch adds to a variance."""
MIN_STD = 5e-3
"""Features that hardly change are not blown up; its square is above what batch normalisation adds."""


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of each feature."""

    mean: Tensor
    """(D,), on the device of the classifier."""
    std: Tensor
    """(D,), above zero."""

    @classmethod
    def of(cls, features: Tensor, device: torch.device = CPU) -> Scaling:
        """Return those of (N, D) features, for a classifier on a device."""
        some = features[:STATISTICS_ROWS].to(device).float()
        return cls(some.mean(dim=0), some.std(dim=0).clamp(min=MIN_STD))

    def to(self, device: torch.device) -> Scaling:
        """Return the same for a classifier on another device."""
        return Scaling(self.mean.to(device), self.std.to(device))

    def __call__(self, features: Tensor) -> Tensor:
        """Return (N, D) features with mean 0 and deviation 1, float32, on the device."""
        return (features.to(self.mean.device).float() - self.mean) / self.std


@dataclass(frozen=True)
class Head:
    """A fitted classifier, on the device where it was fitted; features and probabilities are in host memory."""

    scaling: Scaling
    layers: nn.Sequential
    """`Linear`, or `Linear, ReLU, Dropout, Linear`; in evaluation mode."""

    @torch.inference_mode()
    def probabilities(self, features: Sequence[Tensor], wanted: Tensor | None = None) -> Tensor:
        """Return the mean over views of the class probabilities of (N, D) features: (N, K).

        Args:
            features: One (N, D) a view.
            wanted: (n,) indices of rows, which alone are looked at: (n, K) then.
        """
        some = torch.arange(len(features[0])) if wanted is None else wanted
        means = [
            torch.stack([self.layers(self.scaling(view[rows])).softmax(dim=1) for view in features]).mean(dim=0)
            for rows in torch.split(some, 8192)
        ]
        return torch.cat(means).cpu()


def for_even_pixels(head: Head, drawn: Tensor | None) -> Head:
    """Return a head whose probabilities are those of pixels that occur as they do in images.

    A head that is fitted to pixels drawn by weight sees rare classes where there are none. Dividing its
    probabilities by the weights (Saerens et al., Neural Computation 2002) is a shift of its last bias.

    Args:
        head: Fitted to pixels drawn by weight.
        drawn: Weights of the labels, at least K; None: they were drawn evenly.
    """
    if drawn is None:
        return head
    layers = copy.deepcopy(head.layers)
    bias = layers[-1].bias
    assert isinstance(bias, Tensor)
    weights = drawn[: len(bias)]
    bias -= torch.where(weights > 0, weights.log(), torch.zeros(())).to(bias.device)
    return Head(head.scaling, layers)


@dataclass(frozen=True)
class Rows:
    """Training rows: features of each view, and what they should be classified as."""

    features: tuple[Tensor, ...]
    """One (N, D) a view."""
    targets: Tensor
    """(N, K): how much each class counts in each row; a row of zeros does not count."""


@dataclass(frozen=True)
class HiddenOptions:
    """How a hidden layer is fitted."""

    channels: int = 256
    dropout: float = 0.5
    lr: float = 2e-3
    weight_decay: float = 1e-2
    steps: int = 500
    batch: int = 512
    ema_decay: float = 0.99
    bf16: bool = False
    """Multiply in bfloat16."""


def fit_linear(
    rows: Sequence[Rows],
    *,
    l2: float = 1e-3,
    iterations: int = LINEAR_ITERATIONS,
    start: Head | None = None,
    most: int = LINEAR_ROWS,
    device: torch.device = CPU,
) -> Head:
    """Fit a multinomial regression: weighted cross-entropy plus l2 / 2 times the squared weights, by L-BFGS.

    Args:
        rows: At least one set of rows; all count together by their targets.
        l2: Strength of the penalty, beside a mean cross-entropy.
        iterations: Of L-BFGS, at most.
        start: A linear head to start from; its scaling is kept.
        most: Rows that are taken at once, or somewhat more; see `affordable_rows`.
        device: Where it is fitted.
    """
    scaling = start.scaling.to(device) if start is not None else Scaling.of(rows[0].features[0], device)
    z, targets = _evenly(rows, scaling, most)
    targets = targets / targets.sum()
    mass = targets.sum(dim=1, keepdim=True)
    layer = nn.Linear(z.shape[1], targets.shape[1], device=device)
    with torch.no_grad():
        for name, value in layer.named_parameters():
            value.copy_(getattr(start.layers[0], name)) if start is not None else value.zero_()
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=iterations, history_size=10, line_search_fn="strong_wolfe"
    )

    @torch.no_grad()  # the optimiser turns gradients on: a graph would hold all rows as long as the head lives
    def closure() -> Tensor:
        """Return the loss; its gradient is written by hand, which halves the time."""
        log_probabilities = torch.addmm(layer.bias, z, layer.weight.T).log_softmax(dim=1)
        residual = log_probabilities.exp() * mass - targets
        layer.weight.grad = residual.T @ z + l2 * layer.weight
        layer.bias.grad = residual.sum(dim=0)
        return -(targets * log_probabilities).sum() + l2 / 2 * layer.weight.square().sum()

    with torch.no_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    layer.weight.grad = layer.bias.grad = None
    return Head(scaling, nn.Sequential(layer).eval().requires_grad_(False))


def device_of_fits(network: nn.Module) -> torch.device:
    """Return where classifiers of a network's features are fitted: on its card, else on the processor."""
    device = next(network.parameters()).device
    return device if device.type == "cuda" else CPU


def affordable_rows(num_features: int, device: torch.device = CPU) -> int:
    """Return the rows of so many features that a multinomial regression may take: up to twice as many fit."""
    room = int(LINEAR_SHARE * _free_bytes(device) / (4 * num_features))
    return min(LINEAR_ROWS, max(LEAST_LINEAR_ROWS, room // 2))


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return available_memory()
    kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept_by_torch


def _evenly(rows: Sequence[Rows], scaling: Scaling, most: int) -> tuple[Tensor, Tensor]:
    """Return scaled features and targets of all rows, or of every n-th one: `most` or up to twice as many."""
    views = [(view, each.targets) for each in rows for view in each.features]
    step = max(1, sum(len(view) for view, _ in views) // most)
    device = scaling.mean.device
    targets = torch.cat([wanted[::step] for _, wanted in views]).to(device)
    z = torch.empty(len(targets), views[0][0].shape[1], device=device)
    start = 0
    for view, wanted in views:
        stop = start + len(wanted[::step])
        z[start:stop] = scaling(view[::step])
        start = stop
    return z, targets


def fit_hidden(
    rows: Sequence[Rows],
    *,
    options: HiddenOptions,
    random: np.random.Generator,
    start: Head | None = None,
    device: torch.device = CPU,
) -> Head:
    """Fit one hidden layer: AdamW with a cosine schedule, dropout, and a running mean of the weights.

    Rows are drawn in proportion to the sum of their targets, views evenly.

    Args:
        rows: At least one set of rows.
        options: Width, steps and rates.
        random: Source of the draws and of the initial weights.
        start: A head with a hidden layer to start from; its scaling is kept.
        device: Where it is fitted.
    """
    scaling = start.scaling.to(device) if start is not None else Scaling.of(rows[0].features[0], device)
    views = [(view, each.targets) for each in rows for view in each.features]
    num_features, num_classes = views[0][0].shape[1], views[0][1].shape[1]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(random.integers(2**31)))
        layers = _layers(num_features, num_classes, options)
        if start is not None:
            layers.load_state_dict(start.layers.state_dict())
        layers.to(device)
        _train(layers, views, scaling, options, random)
    return Head(scaling, layers.eval().requires_grad_(False))


def _layers(num_features: int, num_classes: int, options: HiddenOptions) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_features, options.channels),
        nn.ReLU(),
        nn.Dropout(options.dropout),
        nn.Linear(options.channels, num_classes),
    )


def _train(
    layers: nn.Sequential,
    views: Sequence[tuple[Tensor, Tensor]],
    scaling: Scaling,
    options: HiddenOptions,
    random: np.random.Generator,
) -> None:
    """Train in place; the weights in the end are their running mean."""
    mass = np.concatenate([targets.sum(dim=1).double().numpy() for _, targets in views])
    starts = np.cumsum([0] + [len(targets) for _, targets in views])
    order = random.choice(len(mass), options.steps * options.batch, p=mass / mass.sum())
    optimizer = torch.optim.AdamW(layers.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    average = [parameter.detach().clone() for parameter in layers.parameters()]
    layers.train()
    for step in range(options.steps):
        drawn = np.sort(order[step * options.batch : (step + 1) * options.batch])
        x, targets = _batch(views, starts, drawn)
        rate = 0.5 * (1 + math.cos(math.pi * step / options.steps)) * min(1.0, (step + 1) / 30)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate
        with torch.autocast(scaling.mean.device.type, torch.bfloat16, enabled=options.bf16):
            logits = layers(scaling(x))
        loss = -(targets.to(logits.device) * logits.float().log_softmax(dim=1)).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(options.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, list(layers.parameters()), 1 - decay)
    with torch.no_grad():
        for parameter, mean in zip(layers.parameters(), average, strict=True):
            parameter.copy_(mean)


def _batch(
    views: Sequence[tuple[Tensor, Tensor]],
    starts: np.ndarray[tuple[int], np.dtype[np.int64]],
    drawn: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> tuple[Tensor, Tensor]:
    """Return features and targets, each summing to one, of rows numbered through all views, in order."""
    features, targets = [], []
    places = np.searchsorted(drawn, starts)
    for number, (view, wanted) in enumerate(views):
        index = torch.from_numpy(drawn[places[number] : places[number + 1]] - starts[number])
        features.append(view[index])
        targets.append(wanted[index])
    chosen = torch.cat(targets)
    return torch.cat(features), chosen / chosen.sum(dim=1, keepdim=True)


def head_of(decoder: PyramidDecoder) -> Head:
    """Return the hidden layer that a decoder computes: what `install` made it compute."""
    assert decoder.last is not None
    values, levels = decoder.state_dict(), range(len(decoder.project))
    mean = torch.cat([values[f"norms.{level}.running_mean"] for level in levels])
    variance = torch.cat([values[f"norms.{level}.running_var"] for level in levels])
    first = torch.cat([values[f"project.{level}.weight"].flatten(1) for level in levels], dim=1)
    last = values["last.weight"].flatten(1)
    layers = _layers(first.shape[1], len(last), HiddenOptions(channels=len(first)))
    layers.load_state_dict(
        {
            "0.weight": first,
            "0.bias": values["project.0.bias"],
            "3.weight": last,
            "3.bias": values["last.bias"],
        }
    )
    scaling = Scaling(mean, (variance + BATCH_NORM_EPS).sqrt())
    return Head(scaling, layers.eval().requires_grad_(False))


@torch.no_grad()
def install(head: Head, decoder: PyramidDecoder) -> None:
    """Make a decoder compute what a head does. Its width is that of the head's hidden layer, or 0."""
    weights = head.layers.state_dict()
    values = dict(decoder.state_dict())
    start = 0
    for level in range(len(decoder.project)):
        stop = start + values[f"project.{level}.weight"].shape[1]
        values[f"norms.{level}.running_mean"] = head.scaling.mean[start:stop]
        values[f"norms.{level}.running_var"] = head.scaling.std[start:stop] ** 2 - BATCH_NORM_EPS
        values[f"project.{level}.weight"] = weights["0.weight"][:, start:stop, None, None]
        start = stop
    values["project.0.bias"] = weights["0.bias"]
    if len(head.layers) > 1:
        values["last.weight"], values["last.bias"] = weights["3.weight"][..., None, None], weights["3.bias"]
    decoder.load_state_dict(values)
