"""PNG of label maps, against Pillow's encoder and decoder."""

import io

import numpy as np
import pytest
from PIL import Image

from gmtool.masks.png import PNG_COMPRESSION, encode_png

PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3, 5), (375, 500), (600, 700)])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_pillow_reads_it_and_writes_the_same_palette_file(size: tuple[int, int], mode: str) -> None:
    random = np.random.default_rng(1)
    for labels in (
        random.integers(0, 256, size, dtype=np.uint8),  # several chunks at the largest size
        np.asfortranarray(random.integers(0, 3, size, dtype=np.uint8)),
        np.broadcast_to(np.uint8(7), size),
    ):
        image, buffer = Image.fromarray(labels), io.BytesIO()
        if mode == "P":
            image.putpalette(PALETTE.tobytes())
        image.save(buffer, "PNG", compress_level=PNG_COMPRESSION)
        encoded = encode_png(labels, PALETTE if mode == "P" else None)
        assert mode == "L" or encoded == buffer.getvalue()  # Pillow filters the rows of grey images
        with Image.open(io.BytesIO(encoded)) as decoded:
            assert decoded.mode == mode and (np.asarray(decoded) == labels).all()
