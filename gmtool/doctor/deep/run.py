"""Run deep checks, each in a process of its own with a time limit: a crash or a hang is one failed line.

Several checks run at a time, as far as there are cores; those that measure memory or speed run alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from gmtool.data.toy import generate_toy
from gmtool.doctor.deep.result import DeepFinding, Setting
from gmtool.doctor.deep.toy_model import TOY
from gmtool.resources import processors

LOG_LINES = 40
"""Lines of a failed check's output that are kept."""
CORES_A_CHECK, FEWEST_LANES = 3, 2
"""Cores for each of the checks that run at the same time: most keep one busy, some start processes or compile. Two
checks run at a time on two cores, too."""
CARD_BYTES = 4 << 30
"""Memory of a card for each of them: libraries, and ResNet-50 in training."""
POLL_S = 0.05
"""Time between two looks whether a check has ended, or the run was stopped."""


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    module: str
    """Module of `gmtool.doctor.deep` whose function `check` makes it."""
    limit_s: float
    """Above it the check counts as hanging: several times what it takes on a busy machine."""
    variant: str | None = None
    """Second argument of `check`."""
    needs_model: bool = False
    """Whether it needs the toy model."""
    alone: bool = False
    """Whether nothing else may run meanwhile, since it fills the memory of the card or measures speed."""
    without_card: str | None = None
    """Why it is left out without a card; None: it is made on the processor then."""

    @property
    def file_stem(self) -> str:
        """Name of its files in the folder of the checks, without suffix."""
        return self.module if self.variant is None else f"{self.module}-{self.variant}"


SLOW_TO_COMPILE = "no card: torch.compile takes minutes to translate the network for a processor"
MODEL = Check("toy model", "toy_model", 600)
CARD = Check("driver and card", "card", 60)
CHECKS: Sequence[Check] = (
    CARD,
    MODEL,
    Check("training, compiled", "training", 600, "compiled", without_card=SLOW_TO_COMPILE),
    Check("torch against the processor", "numbers", 300),
    Check("efficient attention", "attention", 180),
    Check("waits for the device", "waits", 180, without_card="no card: on a processor nothing waits"),
    *(Check(f"training, {name}", "training", 300, name) for name in ("bf16-mixed", "16-mixed", "32-true")),
    Check("training, channels_last", "training", 300, "channels_last"),
    Check("two ranks", "ranks", 600),
    Check("ONNX Runtime", "onnx_models", 180, needs_model=True),
    Check("TensorRT plans", "plans", 300, needs_model=True),
    Check("out of memory", "out_of_memory", 180, needs_model=True, alone=True),
    Check("speed", "speed", 180, needs_model=True, alone=True),
)
"""In the order in which they start: the first tells the device of the others, the second makes the model that some
need; then those that take longest."""


def run_checks(folder: Path, checks: Sequence[Check] = CHECKS, lanes: int | None = None) -> Generator[DeepFinding]:
    """Run the checks; yield each result as soon as it is known. Closing the iterator ends those that run.

    Args:
        folder: Empty folder for toy data and models.
        checks: `CHECKS`, or some of them in the same order.
        lanes: Checks that run at the same time; None: as many as fit the cores.

    Raises:
        DataError: The toy data cannot be written.
    """
    setting, has_model = Setting(folder, "cpu"), True
    most = lanes or min(processors(), max(FEWEST_LANES, processors() // CORES_A_CHECK))
    generate_toy(setting.data, TOY)  # here, since several checks would do it at the same time
    stages = [
        [check for check in checks if check is CARD],
        [check for check in checks if not check.needs_model and check is not CARD],
        [check for check in checks if check.needs_model and not check.alone],
        *([check] for check in checks if check.alone),
    ]
    for stage in stages:
        to_run = []
        for check in stage:
            if check.needs_model and not has_model:
                yield DeepFinding(check.name, "left out", "needs the toy model, which could not be made", 0.0)
            elif check.without_card is not None and setting.place == "cpu":
                yield DeepFinding(check.name, "left out", check.without_card, 0.0)
            else:
                to_run.append(check)
        for check, found in _run_together(to_run, setting, min(most, len(to_run))):
            if check is CARD and found.figures.get("cards"):
                setting = replace(setting, place="cuda", cards=int(found.figures["cards"]))
                most = min(most, _lanes_of(found.figures.get("gpus", [])))
            if check is MODEL:
                has_model = found.state == "ok"
            yield found


def _lanes_of(gpus: Sequence[Mapping[str, Any]]) -> int:
    """Return how many checks the smallest card can take at the same time."""
    if any(gpu.get("exclusive") for gpu in gpus):
        return 1
    return max(1, min((gpu["memory_bytes"] // CARD_BYTES for gpu in gpus), default=1))


def _run_together(checks: Sequence[Check], setting: Setting, lanes: int) -> Iterator[tuple[Check, DeepFinding]]:
    """Run checks, some at a time; yield them as they end."""
    if not checks:
        return
    stopped, threads = Event(), max(1, processors() // lanes) if lanes > 1 else None
    with ThreadPoolExecutor(lanes) as pool:
        running = {pool.submit(run_check, check, setting, stopped, threads): check for check in checks}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def run_check(
    check: Check, setting: Setting, stopped: Event | None = None, threads: int | None = None
) -> DeepFinding:
    """Run one check in a process of its own, and end that process and its children at the time limit.

    Args:
        check: Check to run.
        setting: Device and folder.
        stopped: Ends the check at once when it is set.
        threads: Threads of the process, unless the environment says how many; None: its libraries' default.
    """
    log, answer = (setting.folder / f"{check.file_stem}.{suffix}" for suffix in ("log", "json"))
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "gmtool.doctor.deep.child", check.name]
    command += [os.fspath(setting.folder), setting.place, str(setting.cards)]
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=limits | os.environ,
        )
        try:
            code = process.poll()
            while code is None and time.monotonic() - started < check.limit_s:
                if stopped is not None and stopped.is_set():
                    break
                time.sleep(POLL_S)
                code = process.poll()
        finally:
            _end(process)
    seconds = round(time.monotonic() - started, 1)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    if code == 0 and answer.is_file():
        found = DeepFinding(**json.loads(answer.read_bytes()), seconds=seconds)
        return replace(found, log=tuple(lines)) if found.state == "failed" else found
    return DeepFinding(check.name, "failed", _death(check, code, lines), seconds, log=tuple(lines))


def _death(check: Check, code: int | None, lines: Sequence[str]) -> str:
    """Return why a process gave no answer."""
    if code is None:
        return f"no answer within {check.limit_s:g} s"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    if code < 0:
        return f"crashed ({signal.Signals(-code).name}): {last}"
    return f"ended with exit code {code}: {last}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and those that it started; without process groups, the process alone."""
    if sys.platform == "win32":
        process.kill()
    else:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
    process.wait()
