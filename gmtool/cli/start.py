"""Where `gmtool` starts: what takes longest is begun before the command line itself is loaded."""

from __future__ import annotations

import sys

from gmtool.cli.early import begin_early, looks_like_prediction


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 usage, 3 some images failed, 130 or 143 stopped."""
    arguments = sys.argv[1:]
    begin_early(arguments)
    from gmtool.cli.app import run

    try:
        run()
    except SystemExit as exit_:
        if looks_like_prediction(arguments) and isinstance(exit_.code, int):
            from gmtool.cli.stop import leave_at_once

            leave_at_once(exit_.code)  # all is written: giving the model's memory back piece by piece takes 0.1 s
        raise
