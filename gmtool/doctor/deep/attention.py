"""Deep check: attention over 16 384 positions without its matrix, equal to the one that is written out."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from gmtool.doctor.deep.result import Checked, LeftOutError, Setting, require
from gmtool.nn.mitrans import NonLocal

SIDE, CHANNELS = 128, 512
"""Height and width of the feature map, and its channels: those of MITrans 1 for an image of 1024x1024."""
LIMIT_BYTES = SIDE**4 * 2
"""Bytes of the matrix of positions in half precision; the matrix in float32 is twice as large."""
TOLERANCE = 1e-4
STATUS = Path("/proc/self/status")


def check(setting: Setting) -> Checked:
    """Measure the memory of a forward pass, on a card also that of the backward pass, and compare the values."""
    device = torch.device(setting.place)
    block = NonLocal(CHANNELS).to(device)
    _compare(block, device)
    figures: dict[str, float] = {}
    # Forward in float32, as in validation
    started = time.perf_counter()
    with torch.no_grad():
        figures["forward_bytes"] = _peak(block, device, backward=False, half=False)
    figures["forward_s"] = round(time.perf_counter() - started, 3)
    # Forward and backward in bfloat16, as in training
    if setting.place == "cuda":
        figures["training_bytes"] = _peak(block, device, backward=True, half=True)
    for name, found in figures.items():
        if name.endswith("_bytes"):
            said = f"{name}: {found / 2**20:.0f} MiB: the matrix of {SIDE**2} positions is written out"
            require(found < LIMIT_BYTES, said)
    text = f"{SIDE**2} positions: {figures['forward_bytes'] / 2**20:.0f} MiB in {figures['forward_s']:.1f} s"
    if "training_bytes" in figures:
        text += f", with backward in bfloat16 {figures['training_bytes'] / 2**20:.0f} MiB"
    left_out = "no card: its kernels were not tried" if setting.place == "cpu" else None
    return Checked(f"{text} (the matrix alone: {LIMIT_BYTES * 2 / 2**20:.0f})", left_out, figures)


def _compare(block: NonLocal, device: torch.device) -> None:
    """Compare with the product, softmax and product that `materialize` writes, at few positions."""
    x = torch.randn(2, CHANNELS, 24, 20, device=device, generator=torch.Generator(device).manual_seed(0))
    with torch.no_grad():
        fused = block(x)
        block.materialize = True
        written = block(x)
        block.materialize = False
    difference = (fused - written).abs().max().item()
    require(difference < TOLERANCE, f"differs by {difference:.2g} from attention that is written out")


def _peak(block: NonLocal, device: torch.device, *, backward: bool, half: bool) -> int:
    """Return the bytes that a pass takes above those that are in use before it."""
    x = torch.randn(1, CHANNELS, SIDE, SIDE, device=device, requires_grad=backward)
    before = _memory(device, start=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        y = block(x)
    if backward:
        y.float().sum().backward()
    del y
    return _memory(device) - before


def _memory(device: torch.device, *, start: bool = False) -> int:
    """Return the largest memory so far, bytes; at the start what is in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        if start:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if not STATUS.is_file():
        raise LeftOutError("this system does not tell the memory of a process")
    # The peak at the start too: what was taken and freed before may be used again without a trace
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
