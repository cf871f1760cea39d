"""Start-up time: `gmtool --help` against an empty Python, in one run.

uv run python benchmarks/startup.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

REPEATS = 15

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "gmtool --help": [sys.executable, "-m", "gmtool", "--help"],
    "gmtool train --help": [sys.executable, "-m", "gmtool", "train", "--help"],
}


def seconds(command: list[str]) -> float:
    """Return the wall-clock time of one run of a command."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Print the median of interleaved runs, so that a noisy machine hurts all alike."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:<22} {median:6.3f} s  {median / medians['python']:5.1f} x an empty Python")
    print(json.dumps({"repeats": REPEATS, "median_s": medians}))


if __name__ == "__main__":
    main()
