"""Facts of a training run that its settings do not hold: recipe, reasons, images, time, memory (`run.json`)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmtool.errors import CheckpointError, GmtoolError
from gmtool.files import write_atomically
from gmtool.json_toml import read_json, typed

RECORD_NAME = "run.json"
EVENTS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class Candidate:
    """A candidate of a choice, and what was measured with it."""

    name: str
    figures: tuple[float | None, ...]
    """One value a column of the choice; None: not measured."""
    taken: bool = False


@dataclass(frozen=True)
class Choice:
    """A choice that was made by measurements."""

    subject: str
    """What was chosen, such as "input scale"."""
    rule: str
    """How the figures decide."""
    columns: tuple[str, ...]
    """Names of the figures with their unit."""
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Stage:
    """Time of a part of a run."""

    name: str
    seconds: float


@dataclass(frozen=True)
class RunRecord:
    """Facts of a run; empty and None where they are not known."""

    kind: str = ""
    """Data set kind."""
    recipe: str = ""
    """Recipe that was asked for, or chosen."""
    reasons: tuple[str, ...] = ()
    """Why settings were chosen from the data, one line each."""
    labeled: int | None = None
    unlabeled: int | None = None
    val: int | None = None
    """Numbers of images."""
    image_size: str = ""
    """Median size of the labeled images: "320x213"."""
    started: str = ""
    """Date and time, ISO 8601."""
    seconds: float = 0.0
    """Time of training with validations, of all parts of a resumed run."""
    memory_bytes: int | None = None
    """Largest resident memory of the process."""
    gpu_bytes: int | None = None
    """Largest memory that torch allocated on the GPU."""
    versions: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    """Choices by measurements, in their order."""
    stages: tuple[Stage, ...] = ()
    """Times of the parts of the run, in their order; empty where it trained step by step."""
    processor_seconds: float | None = None
    """Time of processors that the process got in these parts; None if not measured."""


def save_record(run_dir: Path, record: RunRecord) -> None:
    """Write `run.json`."""
    write_atomically(run_dir / RECORD_NAME, json.dumps(asdict(record), indent=1) + "\n")


def read_record(run_dir: Path) -> RunRecord:
    """Return the record of a run; an empty one if it has none, or one that cannot be read."""
    with contextlib.suppress(GmtoolError):
        return typed(RunRecord, read_json(run_dir / RECORD_NAME), where=str(run_dir / RECORD_NAME))
    return RunRecord()


def read_events(run_dir: Path) -> list[Mapping[str, Any]]:
    """Return the events of `metrics.jsonl` by iteration, without a half-written line of a killed process.

    Raises:
        CheckpointError: `run_dir` has no `metrics.jsonl`.
    """
    path = run_dir / EVENTS_NAME
    if not path.is_file():
        raise CheckpointError(f"{run_dir} is not a run: expected {path}")
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("iteration"), int | float):
                events.append(event)
    return sorted(events, key=lambda event: float(event["iteration"]))
