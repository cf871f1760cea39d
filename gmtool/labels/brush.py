"""Label Studio's run lengths of brush strokes: bit-packed RGBA bytes, with the mask in alpha.

The format is that of thi.ng/rle-pack. `label_studio_sdk.converter.brush` reads it too, through a text of one
character a bit: 60 MB and seconds for a photo, and its package needs 50 others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gmtool.errors import DataError
from gmtool.images import MAX_PIXELS, UInt8Array

SIZES = (3, 4, 8, 16)
"""Bits of a run's length, of which each run chooses one, as Label Studio writes them."""


def decode_brush(rle: object, size: tuple[int, int], *, where: str) -> npt.NDArray[np.bool_]:
    """Return the mask (H, W) of a stroke.

    Args:
        rle: List of bytes.
        size: (height, width) of the image.
        where: Place, for messages.

    Raises:
        DataError: Not such a list, or of an image of another size.
    """
    if isinstance(rle, str):
        raise DataError(f"{where}: its rle is text, not a list of bytes: export as JSON from Label Studio itself")
    try:
        content = bytes(rle)  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: its rle is not a list of bytes") from error
    if size[0] * size[1] > MAX_PIXELS or len(content) > 8 * size[0] * size[1] + 64:
        raise DataError(f"{where}: its rle is too long for {size[1]}x{size[0]} pixels")
    bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8))
    if len(bits) < 53:
        raise DataError(f"{where}: its rle is truncated")
    number, word, position = _number(bits, 0, 32), _number(bits, 32, 5) + 1, 37
    sizes = [_number(bits, position + 4 * place, 4) + 1 for place in range(4)]
    position += 16
    expected = 4 * size[0] * size[1]
    if number != expected:
        raise DataError(f"{where}: its rle has {number} bytes; {size[1]}x{size[0]} pixels of RGBA have {expected}")
    # Runs of one value, and runs of single values
    values = np.zeros(number, dtype=np.uint8)
    done = 0
    while done < number:
        length_bits = sizes[_number(bits, position + 1, 2)] if position + 3 <= len(bits) else 0
        is_run, position = bool(length_bits and bits[position]), position + 3
        stop = done + 1 + _number(bits, position, length_bits)
        position += length_bits
        needed = word if is_run else word * (stop - done)
        if not length_bits or stop > number or position + needed > len(bits):
            raise DataError(f"{where}: its rle is damaged")
        if is_run:
            values[done:stop] = min(_number(bits, position, word), 255)
        else:
            table = bits[position : position + needed].reshape(-1, word)[:, -8:]
            values[done:stop] = np.packbits(np.pad(table, ((0, 0), (8 - table.shape[1], 0))), axis=1)[:, 0]
        position += needed
        done = stop
    return values[3::4].reshape(size) > 0


def encode_brush(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return the run lengths of a mask (H, W), as Label Studio's editor writes them."""
    flat = mask.reshape(-1)
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [len(flat)]])
    bits = [f"{4 * len(flat):032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        value = "11111111" if flat[start] else "00000000"
        left = 4 * (stop - start)
        while left:
            length = min(left, 1 << SIZES[-1])
            choice = next(place for place, size in enumerate(SIZES) if length <= 1 << size)
            bits.append(f"1{choice:02b}{length - 1:0{SIZES[choice]}b}{value}")
            left -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    packed: UInt8Array = np.packbits(np.frombuffer(text.encode(), dtype=np.uint8) - ord("0"))
    numbers: list[int] = packed.tolist()
    return numbers


def _number(bits: UInt8Array, position: int, count: int) -> int:
    """Return the number in some bits, the highest first."""
    number = 0
    for bit in bits[position : position + count].tolist():
        number = number << 1 | bit
    return number
