"""Steps of a recipe through the loop of `gmtool train`, with random images on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import count, repeat
from pathlib import Path

import numpy as np
import torch
from gmtool_training.data.batches import LabeledBatch, UnlabeledBatch
from gmtool_training.engine.average import update_average
from gmtool_training.engine.build_step import build_step
from gmtool_training.engine.graphed_step import GraphedStep
from gmtool_training.engine.machine import Machine, in_precision
from gmtool_training.engine.optim import set_learning_rates
from gmtool_training.loop.fit import Hooks, fit
from gmtool_training.loop.prepare import build_state
from gmtool_training.loop.progress import TrainingProgress
from gmtool_training.loop.schedule import build_schedule
from gmtool_training.loop.stop import StopRequest
from gmtool_training.recipes.recipes import RECIPES
from gmtool_training.watch.log import SilentLog

from gmtool.classes import ClassSet, distinct_palette
from gmtool.config import TrainConfig
from gmtool.nn.checkpoint import build_network
from gmtool.settings import Settings, build_config

NUM_CLASSES = 5
CLASSES = ClassSet(
    names=tuple(f"class {index}" for index in range(NUM_CLASSES)),
    palette=distinct_palette(NUM_CLASSES, 0),
    raw_ids=tuple(range(NUM_CLASSES)),
    background=1,  # in the middle: the foreground classes are two ranges
)
RECIPE_NAMES = ("supervised", "paper", "fixmatch")
"""Recipes that train step by step."""
STEPS = 5
"""Steps of a check: one of warm-up, one that makes what later ones use again, three to look at."""
LOOKED_AT = range(2, STEPS)


def step_config(recipe: str, changes: Settings) -> TrainConfig:
    """Return a configuration of a few steps of a recipe, whose unlabeled images come from the second step on."""
    settings: Settings = {
        "data.root": Path("random"),
        "data.crop_px": 32,
        "data.labeled_batch": 4,
        "data.unlabeled_batch": 4,
        "optim.iterations": STEPS,
        "run.validations": 1,
        "run.log_every": 1,
    }
    network: Settings = {"model.encoder": "toy", "model.encoder_weights": "none", "model.decoder_channels": 32}
    method: Settings = {"method.warmup_fraction": 1 / STEPS, "method.balance": 0.5}
    return build_config(settings, RECIPES[recipe], network, method, changes)


def take_steps(
    config: TrainConfig,
    machine: Machine,
    *,
    within: Callable[[int], AbstractContextManager[object]],
    graphed: bool = False,
) -> bool:
    """Take the steps of a configuration; return whether the last one was replayed as a CUDA graph.

    Args:
        config: From `step_config`.
        machine: Device and precision.
        within: Returns the context of a step by its index from 0: from copying its batch to the device to the
            update of the weights and of their average.
        graphed: Capture steps as `gmtool train` does on a card, else each kernel is started by the host.
    """
    # Network and state as of a run
    torch.manual_seed(0)
    network = build_network(config.model, CLASSES)
    state = build_state(config, machine, network)
    schedule = build_schedule(config, CLASSES)
    weights = machine.to_device(torch.linspace(0.5, 1.5, NUM_CLASSES)) if config.method.balance else None
    step = build_step(config.method, CLASSES, machine, average=state.average, class_weights=weights)
    replayed = GraphedStep(step, config.method)
    stack = ExitStack()

    def labeled() -> Iterator[LabeledBatch]:
        for index in count():
            stack.enter_context(within(index))
            yield batch

    def after_update(index: int) -> None:
        if state.average is not None:
            update_average(state.average, network, decay=config.optim.ema_decay, step=index)
        stack.close()

    # The loop of `gmtool train`, without validation
    batch, others = random_batches(config, pin=machine.device.type == "cuda")
    nothing = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    hooks = Hooks(
        validate=lambda _: nothing,
        validate_rest=None,
        val_images=(0, 0),
        after_update=after_update,
        after_validation=lambda _: None,
        save=lambda progress, miou, is_best: None,
        describe_step=lambda index: f"random images of step {index}",
    )
    with stack:
        fit(
            machine,
            in_precision(network, machine),
            state.optimizer,
            partial(set_learning_rates, state.optimizer, config.optim),
            replayed if graphed else step,
            schedule=schedule,
            start=TrainingProgress(),
            sums=state.sums,
            labeled=labeled(),
            unlabeled=None if config.method.name == "supervised" else repeat(others),
            hooks=hooks,
            stop=StopRequest(machine),
            log=SilentLog(),
        )
    return replayed.is_captured


def random_batches(config: TrainConfig, *, pin: bool = False) -> tuple[LabeledBatch, UnlabeledBatch]:
    """Return random images and masks in batches of a configuration, in pinned memory if asked."""
    random, side = torch.Generator().manual_seed(0), config.data.crop_px
    labeled, others = (
        torch.randint(0, 256, (images, 3, side, side), generator=random, dtype=torch.uint8)
        for images in (config.data.labeled_batch, config.data.unlabeled_batch)
    )
    masks = torch.randint(0, NUM_CLASSES, labeled[:, 0].shape, generator=random, dtype=torch.uint8)
    masks[0, : side // 2] = CLASSES.ignore_index
    inside = torch.ones_like(others[:, 0], dtype=torch.bool)
    inside[0, :, : side // 4] = False
    made = [tensor.pin_memory() if pin else tensor for tensor in (labeled, masks, others, inside)]
    return LabeledBatch(made[0], made[1]), UnlabeledBatch(made[2], made[3])
