"""Deep check: a training step never waits for the card, in any recipe, and is replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from gmtool_training.engine.machine import open_machine

from gmtool.doctor.deep.result import Checked, CheckFailedError, Setting, require
from gmtool.doctor.deep.steps import LOOKED_AT, RECIPE_NAMES, step_config, take_steps
from gmtool.settings import Settings

GRAPHED: Settings = {"optim.iterations": 14, "method.warmup_fraction": 0.45}
"""Steps of a captured run: six of warm-up, eight with unlabeled images; three of each come before a capture."""


def check(setting: Setting) -> Checked:
    """Take steps of every recipe in which torch raises where it would wait for the card, then captured ones."""
    del setting

    def within(step: int) -> AbstractContextManager[object]:
        return _refusing_waits() if step in LOOKED_AT else nullcontext()

    machine, _, precision = open_machine("cuda", "auto")
    for recipe in RECIPE_NAMES:
        try:
            take_steps(step_config(recipe, {"run.precision": precision}), machine, within=within)
        except RuntimeError as error:
            raise CheckFailedError(f"{recipe}: {str(error).splitlines()[0]}") from error
        # As `gmtool train` does by default: captured for labeled images, then anew with unlabeled ones
        changes: Settings = {"run.precision": precision, "run.channels_last": True, **GRAPHED}
        graphed = take_steps(
            step_config(recipe, changes),
            machine,
            within=lambda _: nullcontext(),
            graphed=True,
        )
        require(graphed, f"{recipe}: its steps cannot be captured as a CUDA graph")
    recipes = ", ".join(RECIPE_NAMES)
    return Checked(f"none in a step of {recipes} in {precision}; each is replayed as a CUDA graph")


@contextmanager
def _refusing_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
