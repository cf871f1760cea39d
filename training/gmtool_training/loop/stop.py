"""Ctrl-C, and SIGTERM of schedulers and preempted machines: the first saves and ends, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from gmtool.errors import InterruptedTrainingError, TerminatedError

if TYPE_CHECKING:
    from gmtool_training.engine.machine import Machine

STEPS_BETWEEN_QUESTIONS = 10
"""Steps between two checks over several processes; each check waits for the device."""
ONE_SIGNAL_S = 3.0
"""Time within which a second signal is no second one under torchrun: the terminal and torchrun both send it."""
FOR_THE_LINE_S = 0.5
"""Time in which the command line's thread that watches signals, if there is one, says its line and ends."""


class StopRequest:
    """Request to end the process, raised between steps or images."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._asked = threading.Event()
        self._number = signal.SIGTERM

    def ask(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Request the end of the process."""
        self._number = number
        self._asked.set()

    @property
    def is_asked(self) -> bool:
        """Whether this process was asked to end."""
        return self._asked.is_set()

    def raise_between_steps(self, iteration: int) -> None:
        """Raise `TerminatedError` if any process was asked to end; all processes raise at the same step."""
        if self._machine.processes > 1:
            if iteration % STEPS_BETWEEN_QUESTIONS:
                return
            import torch

            asked = torch.tensor(float(self._asked.is_set()), device=self._machine.device)
            self._raise_if(bool(self._machine.sum(asked) > 0))
        else:
            self._raise_if(self._asked.is_set())

    def raise_within_step(self) -> None:
        """Raise `TerminatedError` if this process was asked to end and is the only one of the run."""
        self._raise_if(self._machine.processes == 1 and self._asked.is_set())

    def _raise_if(self, stops: bool) -> None:
        if stops and self._number == signal.SIGINT:
            raise InterruptedTrainingError("stopped by Ctrl-C")
        if stops:
            raise TerminatedError("stopped by SIGTERM")


@contextmanager
def stop_on_signals(machine: Machine, asked: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Yield a `StopRequest` that the first Ctrl-C or SIGTERM sets; the second one ends the process.

    The first signal interrupts nothing: a step and a save in progress end first. Outside of the main thread
    signals cannot be caught, so the request is never set there. Signals that are ignored stay ignored.

    Args:
        machine: Processes of the run.
        asked: Called at the first signal, between two instructions of the program: it may only set values.
    """
    request = StopRequest(machine)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    first_s = 0.0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal first_s
        if not request.is_asked:
            first_s = time.monotonic()
            request.ask(signal.Signals(number))
            asked()
        elif machine.processes == 1 or time.monotonic() - first_s > ONE_SIGNAL_S:
            time.sleep(FOR_THE_LINE_S)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    # The command line's thread that watches signals: it ends the process at the second one, also in native code
    handle.saves_first = machine.processes == 1  # type: ignore[attr-defined]
    numbers = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
