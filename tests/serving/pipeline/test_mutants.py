import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmtool.errors import ImageError
from gmtool.images import decode_image

PER_FORMAT = 400


def mutant(content: bytes, random: np.random.Generator) -> bytes:
    """Change a valid file: bits, bytes, a run of bytes, its end, or two places exchanged."""
    data = bytearray(content)
    place, length = int(random.integers(len(data))), int(random.integers(1, 64))
    kind = random.integers(6)
    if kind == 0:
        for _ in range(int(random.integers(1, 8))):
            data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    elif kind == 1:
        data[place] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF]))
    elif kind == 2:
        data[place : place + length] = random.bytes(len(data[place : place + length]))
    elif kind == 3:
        del data[place:]
    elif kind == 4:
        del data[place : place + length]
    else:
        other = int(random.integers(len(data)))
        data[place:place] = data[other : other + length]
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_case_15_damaged_files_give_pixels_or_a_typed_error_and_soon(kind: str) -> None:
    y, x = np.mgrid[:48, :64]
    picture = np.stack([x * 4, y * 5, x + y], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
    random = np.random.default_rng([15, *kind.encode()])
    slowest, refused = 0.0, 0
    for number in range(PER_FORMAT):
        content = mutant(buffer.getvalue(), random)
        started = time.perf_counter()
        try:
            pixels = decode_image(content, Path(f"{number}.{kind}"), max_pixels=4_000_000).pixels
            assert pixels.dtype == np.uint8 and pixels.ndim == 3
        except ImageError as error:
            refused += 1
            assert error.code in ("not_an_image", "truncated", "damaged", "too_large", "unsupported")
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < 5
    assert 0.1 < refused / PER_FORMAT < 1.0
