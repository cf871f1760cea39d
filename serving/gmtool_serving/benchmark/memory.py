"""How much memory a model takes at most, measured in a process that does nothing else.

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
"""Not `getrusage`: its maximum begins with that of the process that started this one."""


def measure_peak(
    model: Path, shape: tuple[int, ...], *, device: InferenceDevice, threads: int, trust: bool
) -> int | None:
    """Return the bytes that loading a model and one batch of `shape` (N, H, W, 3) take at most.

    What Python and the runtime take by themselves is not counted, nor is the memory of a GPU. None where the
    system does not tell.
    """
    if not STATUS.is_file():
        return None
    numbers = [*shape[:3], device, threads, int(trust)]
    command = [sys.executable, "-m", "gmtool_serving.benchmark.memory", str(model), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def main(model: Path, shape: tuple[int, int, int], device: InferenceDevice, threads: int, *, trust: bool) -> None:
    """Print the peak in bytes."""
    if model.suffix == ".onnx":
        import gmtool_serving.backends.onnx_runtime  # noqa: F401  its memory is the runtime's, not the model's
    before = _peak_bytes()
    backend = open_backend(model, device=device, threads=threads, trust=trust)
    for _ in range(2):  # the second finds the arena filled
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
