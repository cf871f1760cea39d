"""Run deep checks, each in a process of its own with a time limit: a crash or a hang is one failed line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gmtool.doctor.deep.result import DeepFinding, Setting

LOG_LINES = 40
"""Lines of a failed check's output that are kept."""


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
    without_card: str | None = None
    """Why it is left out without a card; None: it is made on the processor then."""


SLOW_TO_COMPILE = "no card: torch.compile takes minutes to translate the network for a processor"
MODEL = Check("toy model", "toy_model", 600)
CARD = Check("driver and card", "card", 60)
CHECKS: Sequence[Check] = (
    CARD,
    MODEL,
    Check("torch against the processor", "numbers", 300),
    Check("efficient attention", "attention", 180),
    Check("waits for the device", "waits", 180, without_card="no card: on a processor nothing waits"),
    *(Check(f"training, {name}", "training", 300, name) for name in ("bf16-mixed", "16-mixed", "32-true")),
    Check("training, channels_last", "training", 300, "channels_last"),
    Check("training, compiled", "training", 600, "compiled", without_card=SLOW_TO_COMPILE),
    Check("two ranks", "ranks", 600),
    Check("ONNX Runtime", "onnx_models", 180, needs_model=True),
    Check("out of memory", "out_of_memory", 180, needs_model=True),
    Check("TensorRT plans", "plans", 300, needs_model=True),
    Check("speed", "speed", 180, needs_model=True),
)
"""In their order. The first tells the device of the others, the second makes the model that some of them need."""


def run_checks(folder: Path, checks: Sequence[Check] = CHECKS) -> Iterator[DeepFinding]:
    """Run the checks; yield each result as soon as it is known.

    Args:
        folder: Empty folder for toy data and models.
        checks: `CHECKS`, or some of them in the same order.
    """
    setting, has_model = Setting(folder, "cpu"), True
    for check in checks:
        if check.needs_model and not has_model:
            yield DeepFinding(check.name, "left out", "needs the toy model, which could not be made", 0.0)
            continue
        if check.without_card is not None and setting.place == "cpu":
            yield DeepFinding(check.name, "left out", check.without_card, 0.0)
            continue
        found = run_check(check, setting)
        if check is CARD and found.figures.get("cards"):
            setting = replace(setting, place="cuda", cards=int(found.figures["cards"]))
        if check is MODEL:
            has_model = found.state == "ok"
        yield found


def run_check(check: Check, setting: Setting) -> DeepFinding:
    """Run one check in a process of its own, and end that process and its children at the time limit."""
    log, answer = setting.folder / "check.log", setting.folder / "check.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "gmtool.doctor.deep.child", check.name]
    command += [os.fspath(setting.folder), setting.place, str(setting.cards)]
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code: int | None = process.wait(check.limit_s)
        except subprocess.TimeoutExpired:
            code = None
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
