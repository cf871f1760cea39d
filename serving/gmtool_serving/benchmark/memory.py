"""Peak memory of a model, measured in a process of its own.

`python -m gmtool_serving.benchmark.memory MODEL N H W DEVICE THREADS TRUST` prints bytes; TRUST is 0 or 1.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np

from gmtool_serving.backends.base import InferenceDevice
from gmtool_serving.backends.opening import open_backend

STATUS = Path("/proc/self/status")
"""Not `getrusage`: its maximum starts at that of the parent process."""


def measure_peak(
    model: Path, shape: tuple[int, ...], *, device: InferenceDevice, threads: int, trust: bool
) -> int | None:
    """Return the peak memory, bytes, of loading a model and predicting a batch of `shape` (N, H, W, 3).

    Memory of Python, of the runtime alone and of the GPU is not counted. None where /proc is unavailable.
    """
    if not STATUS.is_file():
        return None
    numbers = [*shape[:3], device, threads, int(trust)]
    command = [sys.executable, "-m", "gmtool_serving.benchmark.memory", str(model), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def main(model: Path, shape: tuple[int, int, int], device: InferenceDevice, threads: int, *, trust: bool) -> None:
    """Print the peak memory, bytes."""
    if model.suffix == ".onnx":
        import gmtool_serving.backends.onnx_runtime  # noqa: F401  memory of the runtime is not counted
    before = _peak_bytes()
    backend = open_backend(model, device=device, threads=threads, trust=trust)
    for _ in range(2):  # the second uses the filled arena
        backend.predict(np.zeros((*shape, 3), np.uint8))
    sys.stdout.write(f"{_peak_bytes() - before}\n")


def _peak_bytes() -> int:
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
