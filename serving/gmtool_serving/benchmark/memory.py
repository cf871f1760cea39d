"""Peak memory of a model, measured in a process of its own.

`python -m gmtool_serving.benchmark.memory MODEL N H W DEVICE THREADS TRUST` prints bytes; TRUST is 0 or 1.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np

from gmtool_serving.backends.base import InferenceDevice
from gmtool_serving.backends.opening import open_backend
from gmtool_serving.benchmark.card_memory import CardMemory

STATUS = Path("/proc/self/status")
"""Not `getrusage`: its maximum starts at that of the parent process."""


def measure_peak(
    model: Path, shape: tuple[int, ...], *, device: InferenceDevice, threads: int, trust: bool
) -> int | None:
    """Return the peak memory, bytes, of loading a model and predicting a batch of `shape` (N, H, W, 3).

    Of a model on a card it is the card's memory, else the process's. Memory of Python and of the runtime alone is
    not counted. None where it cannot be measured: on a processor without /proc, or if the model failed.
    """
    numbers = [*shape[:3], device, threads, int(trust)]
    command = [sys.executable, "-m", "gmtool_serving.benchmark.memory", str(model), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return int(words[-1]) if done.returncode == 0 and words else None


def main(model: Path, shape: tuple[int, int, int], device: InferenceDevice, threads: int, *, trust: bool) -> None:
    """Print the peak memory, bytes; nothing where it cannot be measured."""
    if model.suffix == ".onnx":
        import gmtool_serving.backends.onnx_runtime  # noqa: F401  memory of the runtime is not counted
    card = None if device == "cpu" else CardMemory.open()
    before = _peak_bytes()
    with card or contextlib.nullcontext():
        backend = open_backend(model, device=device, threads=threads, trust=trust)
        for _ in range(2):  # the second uses the filled arena
            backend.predict(np.zeros((*shape, 3), np.uint8))
        if backend.device == "cuda":
            peak = None if card is None else card.peak_bytes
        else:
            after = _peak_bytes()
            peak = None if before is None or after is None else after - before
    if peak is not None:
        sys.stdout.write(f"{peak}\n")


def _peak_bytes() -> int | None:
    if not STATUS.is_file():
        return None
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    path, count, height, width, device_name, thread_count, trusted = sys.argv[1:]
    main(
        Path(path),
        (int(count), int(height), int(width)),
        cast(InferenceDevice, device_name),
        int(thread_count),
        trust=trusted == "1",
    )
