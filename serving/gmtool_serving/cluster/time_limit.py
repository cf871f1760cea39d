"""Limit of processor time for one image in a Ray worker."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """End this process if the block takes more than `seconds` of its processor time.

    Processor time, and not that of a clock: it stands still while the process is stopped or its container is
    frozen. SIGPROF ends the process even if a native decoder holds the interpreter lock; Ray starts another one.
    Windows has no such timer: there the clock's time counts.
    """
    if sys.platform == "win32":
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
    else:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
