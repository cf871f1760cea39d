"""Entry point of `gmtool`: streams and signals first, then the model of a prediction, then the command line."""

from __future__ import annotations

import sys

from gmtool import streams
from gmtool.cli import signals

RESUME_REMEDY = ": masks that are done are whole; the same command with --resume does the rest"


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 usage, 3 some images failed, 130 or 143 stopped."""
    arguments = sys.argv[1:]
    predicts, serves = arguments[:1] == ["predict"], arguments[:1] == ["serve"]
    streams.open_standard_streams()  # before any other file is opened
    signals.raise_on_signals(remedy=RESUME_REMEDY if predicts else "")
    try:
        code = _run()
        code = _with_lost_output(code, predicts=predicts)
    except BaseException:
        if signals.exit_code() is None:
            raise
    if signals.exit_code() is not None:  # whatever a library made of the exception
        signals.leave_stopped()
    if predicts or serves:
        signals.leave_at_once(code)  # all is written: giving the model's memory back piece by piece takes 0.1 s
    sys.exit(code)


def _run() -> int:
    from gmtool.cli.app import run

    try:
        run()
    except SystemExit as exit_:
        if isinstance(exit_.code, int):
            return exit_.code
        raise
    return 0


def _with_lost_output(code: int, *, predicts: bool) -> int:
    """Say that something printed on stdout is lost; it is what other commands than `predict` are run for."""
    failure = streams.stdout_failure()
    if failure is None:
        return code
    sys.stderr.write(f"error: stdout: {failure}: what was printed is not complete\n")
    return code if predicts else code or 1
