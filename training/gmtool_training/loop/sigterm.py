"""Handle SIGTERM of schedulers and preempted machines: save, then end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gmtool.errors import TerminatedError
from gmtool_training.engine.machine import Machine

STEPS_BETWEEN_QUESTIONS = 10
"""Steps between two checks over several processes; each check waits for the device."""


class StopRequest:
    """Request to end the process, raised between steps or images."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._asked = threading.Event()

    def ask(self) -> None:
        """Request the end of the process."""
        self._asked.set()

    def raise_between_steps(self, iteration: int) -> None:
        """Raise `TerminatedError` if any process was asked to end; all processes raise at the same step."""
        if self._machine.processes > 1:
            if iteration % STEPS_BETWEEN_QUESTIONS:
                return
            asked = torch.tensor(float(self._asked.is_set()), device=self._machine.device)
            self._raise_if(bool(self._machine.sum(asked) > 0))
        else:
            self._raise_if(self._asked.is_set())

    def raise_within_step(self) -> None:
        """Raise `TerminatedError` if this process was asked to end and is the only one of the run."""
        self._raise_if(self._machine.processes == 1 and self._asked.is_set())

    def _raise_if(self, stops: bool) -> None:
        if stops:
            raise TerminatedError("SIGTERM received; the run is saved: continue with gmtool train --resume")


@contextmanager
def stop_on_sigterm(machine: Machine) -> Iterator[StopRequest]:
    """Yield a `StopRequest` that SIGTERM sets.

    The signal interrupts nothing: a save in progress ends first. Outside of the main thread signals cannot be
    caught, so the request is never set there.
    """
    request = StopRequest(machine)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, lambda *_: request.ask())
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
