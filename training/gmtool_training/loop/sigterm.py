"""SIGTERM: schedulers and preempted machines ask a run to end; it saves first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from lightning_fabric import Fabric

from gmtool.errors import TerminatedError

STEPS_BETWEEN_QUESTIONS = 10
"""How often several processes ask each other: each question waits for the device."""


class StopRequest:
    """Whether the process was asked to end, and the moments at which it may."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._asked = threading.Event()

    def ask(self) -> None:
        """Ask the process to end."""
        self._asked.set()

    def raise_between_steps(self, iteration: int) -> None:
        """Raise `TerminatedError` if any process was asked; several processes all do so at the same step."""
        if self._fabric.world_size > 1:
            if iteration % STEPS_BETWEEN_QUESTIONS:
                return
            asked = torch.tensor(float(self._asked.is_set()), device=self._fabric.device)
            self._raise_if(bool(cast(torch.Tensor, self._fabric.all_reduce(asked, reduce_op="sum")) > 0))
        else:
            self._raise_if(self._asked.is_set())

    def raise_within_step(self) -> None:
        """Raise `TerminatedError` if this process was asked and has no others that would wait for it."""
        self._raise_if(self._fabric.world_size == 1 and self._asked.is_set())

    def _raise_if(self, stops: bool) -> None:
        if stops:
            raise TerminatedError("asked to end (SIGTERM); the run is saved: gmtool train --resume goes on")


@contextmanager
def stop_on_sigterm(fabric: Fabric) -> Iterator[StopRequest]:
    """Give what tells whether SIGTERM has arrived.

    The signal itself interrupts nothing: a save in progress ends first. Outside the main thread signals cannot
    be caught, so nothing is ever asked there.
    """
    request = StopRequest(fabric)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, lambda *_: request.ask())
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
