"""Failures of DataLoader workers as errors of one line with a remedy."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gmtool.artifact.runs import CHECKPOINT_DIR
from gmtool.errors import GmtoolError
from gmtool.resources import SHARED_DIR


@contextmanager
def explained_worker_failures(run_dir: Path) -> Iterator[None]:
    """Turn torch's errors for dead DataLoader workers and missing shared memory into `GmtoolError`.

    torch raises them from a signal handler, anywhere in the process, also while its loader is taken apart:
    what Python would print of that is left out from here on.
    """
    usual = sys.unraisablehook
    sys.unraisablehook = lambda ignored: None if _remedy(str(ignored.exc_value)) else usual(ignored)
    try:
        try:
            yield
        except (RuntimeError, OSError, EOFError):
            # torch's handler raises for every worker that dies: a second one may be on its way
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise
    except (RuntimeError, OSError, EOFError) as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A worker that dies while it hands over a batch leaves half a connection
        cut_off = isinstance(error, ConnectionError | EOFError)
        remedy = _remedy("DataLoader worker" if cut_off else str(error))
        if remedy is None:
            raise
        if any((run_dir / CHECKPOINT_DIR).glob("*.json")):
            remedy += (
                f"; gmtool train --resume {run_dir} goes on from the last checkpoint, also with another "
                "--set data.workers=N"
            )
        raise GmtoolError(remedy) from error


def _remedy(message: str) -> str | None:
    """Return cause and remedy; None for another error."""
    if "Bus error" in message or ("/torch_" in message and "No space left" in message):
        free = f"{shutil.disk_usage(SHARED_DIR).free / 2**20:.0f} MiB free" if SHARED_DIR.is_dir() else "full"
        return (
            f"the processes that decode images ran out of shared memory ({SHARED_DIR}, {free}): make it larger "
            "(docker run --shm-size=8g), or decode in the training process (--set data.workers=0)"
        )
    if "/torch_" in message and "Too many open files" in message:
        return "the processes that decode images share too many open files: raise the limit (ulimit -n 65536)"
    if message.startswith("DataLoader worker"):
        return (
            "a process that decodes images was killed or crashed, most often for lack of memory: take fewer "
            "(--set data.workers=2), or decode in the training process (--set data.workers=0)"
        )
    return None
