"""SIGTERM: schedulers and preempted machines ask a run to end; it saves first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gmtool.errors import TerminatedError


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], None]]:
    """Give a function that raises `TerminatedError` once SIGTERM has arrived.

    The signal itself interrupts nothing: a save in progress ends first. Outside the main thread, where
    signals cannot be caught, the function never raises.
    """
    asked = threading.Event()

    def raise_if_asked() -> None:
        if asked.is_set():
            raise TerminatedError("asked to end (SIGTERM); the run is saved: gmtool train --resume goes on")

    if threading.current_thread() is not threading.main_thread():
        yield raise_if_asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield raise_if_asked
    finally:
        signal.signal(signal.SIGTERM, before)
