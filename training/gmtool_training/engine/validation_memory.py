"""Check before training that the largest validation image fits into memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil

import torch

from gmtool.data.samples import Sample
from gmtool.errors import DataError
from gmtool.images import displayed_size, open_image
from gmtool.nn.encoder import Attention
from gmtool.resources import available_memory

COPIES = 2
"""Attention matrices in memory at once: before and after the softmax."""
REMEDY = (
    "validation uses whole images: scale the validation images down, cut them into tiles, or train without "
    "attention (--set model.non_local_1=false) or with --set model.output_stride=16 (a sixteenth of the memory)"
)


def refuse_too_large_images(
    samples: Sequence[Sample], attention: Attention | None, device: torch.device, *, half: bool
) -> None:
    """Raise `DataError` if the attention matrices of the largest validation image do not fit into memory.

    Only image headers are read. Other activations are much smaller and are not counted.
    """

    def size_of(sample: Sample) -> tuple[int, int]:
        return displayed_size(open_image(sample.image_path))

    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(size_of, samples))
    (height, width), largest = max(zip(sizes, samples, strict=True), key=lambda found: found[0][0] * found[0][1])
    need = attention_bytes(height, width, attention, half=half)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if need > free:
        needed, left = (f"{count / 2**30:.3g} GiB" for count in (need, free))
        raise DataError(
            f"{largest.image_path} is {width}x{height}: attention over it needs {needed} of memory, "
            f"{left} are free: {REMEDY}"
        )


def attention_bytes(height: int, width: int, attention: Attention | None, *, half: bool) -> int:
    """Return the bytes of the attention matrices of one image; 0 without attention."""
    if attention is None:
        return 0
    positions = ceil(height / attention.stride) * ceil(width / attention.stride)
    return COPIES * attention.heads * positions**2 * (2 if half else 4)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch means out of memory, on a GPU or CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
