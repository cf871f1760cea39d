"""PNG of label maps, against Pillow's encoder and decoder."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmtool.masks.label_runs import LabelRuns
from gmtool.masks.png import encode_png

PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3, 5), (375, 500), (600, 700)])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_pillow_reads_what_was_written(size: tuple[int, int], mode: str) -> None:
    random = np.random.default_rng(1)
    kinds: tuple[Any, ...] = (
        random.integers(0, 256, size, dtype=np.uint8),  # several chunks at the largest size
        np.asfortranarray(random.integers(0, 3, size, dtype=np.uint8)),
        np.broadcast_to(np.uint8(7), size),
        random.integers(0, 256, size),
    )
    for labels in kinds:
        encoded = encode_png(labels, PALETTE if mode == "P" else None)
        with Image.open(io.BytesIO(encoded)) as decoded:
            assert decoded.mode == mode and (np.asarray(decoded) == labels).all()
            assert mode == "L" or decoded.getpalette() == PALETTE.flatten().tolist()


def test_a_label_map_takes_less_room_than_pillow_gives_it() -> None:
    y, x = np.mgrid[:375, :500]
    labels = (((x - 200) ** 2 + (y - 150) ** 2 < 9000) + 2 * (y > 250 + 20 * np.sin(x / 30))).astype(np.uint8)
    image, buffer = Image.fromarray(labels), io.BytesIO()
    image.putpalette(PALETTE.tobytes())
    image.save(buffer, "PNG")  # at its highest default effort
    assert len(encode_png(labels, PALETTE)) < len(buffer.getvalue())


@pytest.mark.parametrize("ground", [0, 3, 255])
def test_runs_of_labels_become_the_png_of_their_label_map(ground: int) -> None:
    random = np.random.default_rng(ground)
    for height, width in [(1, 1), (1, 40), (7, 1), (30, 40)]:
        for count in (0, 1, 2, 9):
            labels = np.full((height, width), ground, dtype=np.uint8)
            for _ in range(count):
                top, left = random.integers(0, height), random.integers(0, width)
                labels[top : top + random.integers(1, 9), left : left + random.integers(1, 50)] = random.integers(
                    0, 256
                )
            padded = np.pad(labels, ((0, 0), (1, 0)), constant_values=ground).reshape(-1)
            starts = np.flatnonzero(np.diff(padded, prepend=np.uint8(ground)))
            runs = LabelRuns((height, width), ground, starts, padded[starts])
            np.testing.assert_array_equal(runs.to_map(), labels)
            assert encode_png(runs, PALETTE) == encode_png(labels, PALETTE)
