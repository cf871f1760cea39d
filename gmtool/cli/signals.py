"""Ctrl-C and SIGTERM: one line and exit code 130 or 143 within two seconds, whatever the process is doing.

Light to import: `raise_on_signals` is the first call of the program, before anything that takes time is imported.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
UNWIND_S = 1.2
"""Seconds that the main thread has to clean up after a signal, before the process is ended from another thread."""
LOOK_S = 0.2
"""Seconds between two looks at whether the main thread goes on as if there had been no signal."""
ORDERLY_S = 5.0
"""The same for a command that ends by itself (`calling_on_stop`): it must be able to close its files."""


class Stopped(SystemExit):
    """Raised in the main thread where a signal finds it: `with` blocks delete temporary files and end children.

    Not a `KeyboardInterrupt`: Typer, multiprocessing and torch print lines of their own for that one.
    """


class _State:
    """Signals received by this process."""

    number: int | None = None
    """The first signal that came."""
    act: Callable[[], bool] | None = None
    """Ends what the command does, if it can be ended in an orderly way."""
    limit_s = UNWIND_S
    remedy: str | Callable[[], str] = ""
    stderr = 2
    """A descriptor of its own: 2 is turned to the null device while Ray starts."""
    is_raised = is_lost = is_repetition = False
    """Whether `Stopped` was raised; whether that was in a destructor or a callback, after which Python goes on;
    and whether the next call of `_handle` is that of `_watch`."""


_state = _State()


def raise_on_signals(*, remedy: str = "") -> None:
    """From now on, let the first SIGINT or SIGTERM raise `Stopped`, and a second one end the process.

    Python runs its signal handlers between two instructions of the main thread, which may be inside a native call
    (loading a library, setting up a runtime). A second thread learns of a signal at once, and ends the process
    if the main thread does not. Signals that were ignored when the process began, as in a background job of a
    shell, stay ignored.

    Args:
        remedy: What the one line says after the signal's name.
    """
    _state.remedy = remedy
    with contextlib.suppress(OSError):
        _state.stderr = os.dup(2)
    for number in EXIT_CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    if os.name == "posix":  # elsewhere only sockets wake a thread, and there is no SIGTERM
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        # A forked child has the same pipe: what it is sent is not for this process
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()


@contextlib.contextmanager
def calling_on_stop(act: Callable[[], bool]) -> Iterator[None]:
    """Within the block, call `act` at the first SIGINT or SIGTERM; only if it returns False raise `Stopped`."""
    _state.act, _state.limit_s = act, ORDERLY_S
    try:
        yield
    finally:
        _state.act = None
        if _state.number is None:
            _state.limit_s = UNWIND_S


def advise(remedy: str | Callable[[], str]) -> None:
    """Set what the one line says after the signal's name; a function is called then, in any thread."""
    _state.remedy = remedy


def exit_code() -> int | None:
    """Return the exit code of the signal that came; None if none came."""
    return None if _state.number is None else EXIT_CODES[signal.Signals(_state.number)]


def leave_stopped() -> None:
    """Print the one line and end the process."""
    assert _state.number is not None
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    _end(_state.number)


def leave_at_once(code: int) -> None:
    """End the process without waiting for threads that are busy in native code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _handle(number: int, _: FrameType | None) -> None:
    if _state.number is not None and not _state.is_repetition:
        _end(_state.number)
    _state.number, _state.is_repetition = number, False
    # Threads and destructors whose work was cut short have nothing to say any more
    sys.unraisablehook, threading.excepthook = _note_lost, lambda _: None
    if _state.act is None or not _state.act():
        _state.is_raised = True
        raise Stopped(EXIT_CODES[signal.Signals(number)])


def _watch(reading: int) -> None:
    """End the process if a signal of `_handle` has not ended it in time. Runs in a thread of its own."""
    first: int | None = None
    deadline = 0.0
    while True:
        if first is not None and not select.select([reading], [], [], LOOK_S)[0]:
            if time.monotonic() > deadline:
                _end(first)
            if _state.is_raised and (_state.is_lost or _is_importing()):
                _state.is_lost, _state.is_repetition = False, True
                # As if the signal came again: `_handle` is called, and a byte arrives here
                _thread.interrupt_main(signal.Signals(first))
                if select.select([reading], [], [], 0)[0]:
                    os.read(reading, 1)
            continue
        number = os.read(reading, 1)[0]
        # Training handles signals itself: it saves a checkpoint at the first one, which may take longer
        handler = signal.getsignal(number) if number in EXIT_CODES else None
        saves_first = getattr(handler, "saves_first", False)
        if handler is not _handle and not saves_first:
            continue
        if first is not None:
            _end(first)
        first, deadline = number, math.inf if saves_first else time.monotonic() + _state.limit_s


def _note_lost(unraisable: sys.UnraisableHookArgs) -> None:
    _state.is_lost |= isinstance(unraisable.exc_value, Stopped)


def _is_importing() -> bool:
    """Return whether the main thread imports: there native code turns `Stopped` into an `ImportError`."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end(number: int) -> None:
    """Print the one line, unless it would have to wait, and end the process. Safe in any thread."""
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    remedy = _state.remedy if isinstance(_state.remedy, str) else _state.remedy()
    line = f"stopped by {name}{remedy}\n"
    with contextlib.suppress(OSError, ValueError):
        if os.name != "posix" or select.select([], [_state.stderr], [], 0)[1]:
            os.write(_state.stderr, line.encode("utf-8", "replace"))
    os._exit(EXIT_CODES[signal.Signals(number)])
