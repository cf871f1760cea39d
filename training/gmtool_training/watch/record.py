"""Facts of a run for `run.json`: images, versions, time and memory."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from statistics import median

import torch

from gmtool import __version__
from gmtool.artifact.run_record import RunRecord
from gmtool.data.datasets import TrainingData
from gmtool.images import displayed_size, open_image

LOOKED_AT = 32
"""Labeled images whose size is read."""


def begun(record: RunRecord, data: TrainingData) -> RunRecord:
    """Return the record of a run that begins now."""
    samples = data.labeled.samples
    sizes = [
        displayed_size(open_image(sample.image_path)) for sample in samples[:: max(1, len(samples) // LOOKED_AT)]
    ]
    height, width = (round(median(side)) for side in zip(*sizes, strict=True))
    return replace(
        record,
        labeled=len(samples),
        unlabeled=len(data.unlabeled.samples),
        val=len(data.val.samples),
        image_size=f"{width}x{height}",
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        versions=(f"gmtool {__version__}", f"torch {torch.__version__}", f"torchvision {version('torchvision')}"),
    )


def ended(record: RunRecord, *, seconds: float) -> RunRecord:
    """Return the record of a run that ends after `seconds` of training in all."""
    return replace(
        record,
        seconds=round(seconds, 1),
        memory_bytes=_resident_bytes(),
        gpu_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    )


def _resident_bytes() -> int | None:
    """Return the largest resident memory of this process; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
