"""Ending at a good moment when asked to: Ctrl-C and SIGTERM as a call instead of an exception anywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class StopSignal:
    """Which signal came, if any."""

    exit_code: int | None = None


@contextlib.contextmanager
def calling_on_stop(act: Callable[[], None]) -> Iterator[StopSignal]:
    """Within the block, call `act` at the first SIGINT or SIGTERM. A second one ends the process as ever."""
    came = StopSignal()
    before = {number: signal.getsignal(number) for number in EXIT_CODES}

    def handle(number: int, _: FrameType | None) -> None:
        came.exit_code = EXIT_CODES[signal.Signals(number)]
        for known, handler in before.items():
            signal.signal(known, handler)
        act()

    for number in EXIT_CODES:
        signal.signal(number, handle)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_at_once(code: int) -> None:
    """End the process without waiting for threads that are busy in native code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
