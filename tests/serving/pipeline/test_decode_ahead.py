"""Decoding in chunks, and the memory that it shares with the model."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from gmtool_serving.inputs.collect import InputImage, collect_images
from gmtool_serving.inputs.decode import Decoded, DecodeOptions, Failure
from gmtool_serving.outputs.manifest import Conditions, Record
from gmtool_serving.pipeline import decode_ahead as ahead
from gmtool_serving.pipeline import decoder_pool, shared_memory
from gmtool_serving.pipeline.decoder_pool import Decoders
from gmtool_serving.pipeline.shared_memory import SharedMemory, side_by_side
from PIL import Image

from gmtool.images import read_image

WIDTHS = [5, 5, 5, 40, 5, 40, 40, 5, 5, 5, 5, 5, 40]
SLAB_BYTES = 4 * 3 * 5 * 3 + 1
"""Room for three of the small images; none of the large ones fits."""


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[InputImage]:
    for module in (ahead, decoder_pool, shared_memory):
        monkeypatch.setattr(module, "SLAB_BYTES", SLAB_BYTES)
    folder = tmp_path / "in"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index, width in enumerate(WIDTHS):
        Image.fromarray(random.integers(0, 256, (4, width, 3), dtype=np.uint8)).save(folder / f"{index:03d}.png")
    (folder / "005.png").write_text("text")
    return collect_images([str(folder)], tmp_path / "out")


@pytest.fixture(params=[False, True], ids=["threads", "processes"])
def decoders(images: list[InputImage], request: pytest.FixtureRequest) -> Iterator[Decoders]:
    pool = Decoders(2, DecodeOptions(), isolated=request.param)
    yield pool
    pool.close()


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_every_image_comes_in_its_order_whatever_fits_into_memory(
    images: list[InputImage], decoders: Decoders, chunk: int
) -> None:
    order = []
    for group in ahead.decode_ahead(decoders, images, chunk=chunk, max_bytes=1000, find_done=lambda image: None):
        assert 1 <= len(group) <= chunk
        for image, result in group:
            order.append(image)
            if image.path.name == "005.png":
                assert isinstance(result, Failure) and result.code == "not_an_image"
            else:
                assert isinstance(result, Decoded)
                np.testing.assert_array_equal(result.pixels, read_image(image.path))
    assert order == images


def test_images_that_are_done_are_not_decoded(images: list[InputImage], decoders: Decoders) -> None:
    done = Record("x", None, "x", "0" * 64, "ok", None, None, None, (), Conditions("0" * 64, ("voc",), {}))
    groups = ahead.decode_ahead(
        decoders,
        images,
        chunk=4,
        max_bytes=1000,
        find_done=lambda image: done if int(image.path.stem) % 2 else None,
    )
    results = [result for group in groups for _, result in group]
    assert [result is done for result in results] == [index % 2 == 1 for index in range(len(images))]


def test_chunks_are_whole_however_many_fit_into_memory(
    tmp_path: Path, decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the rest of a chunk that did not fit would set the size of a chunk after it, and that of the next one
    folder = tmp_path / "alike"
    folder.mkdir()
    for number in range(64):
        Image.new("RGB", (5, 4)).save(folder / f"{number:02d}.png")
    images = collect_images([str(folder)], tmp_path / "out")
    parts, submit = [], ahead._submit

    def note(
        decoders: Decoders, part: Sequence[InputImage], find_done: ahead.FindDone
    ) -> Future[list[ahead.Result]]:
        parts.append((images.index(part[0]), len(part)))
        return submit(decoders, part, find_done)

    monkeypatch.setattr(ahead, "_submit", note)
    groups = ahead.decode_ahead(decoders, images, chunk=8, max_bytes=10_000, find_done=lambda image: None)
    assert sum(map(len, groups)) == len(images)  # not kept: memory would be full
    # Three fit: parts of two, once the size is known
    assert {size for start, size in parts if start >= 40} == {2}
    assert {start % 2 for start, _ in parts if start >= 40} == {0}


def test_nothing_to_decode_yields_nothing(decoders: Decoders) -> None:
    assert list(ahead.decode_ahead(decoders, [], chunk=4, max_bytes=1000, find_done=lambda image: None)) == []


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")
def test_a_slab_is_free_again_when_nothing_refers_to_it() -> None:
    memory = SharedMemory()
    slabs = [memory.take() for _ in range(shared_memory.SLABS)]
    assert memory.take() is None
    first = slabs[0]
    assert first is not None
    image = first.array(8, (2, 2, 3))
    del slabs, first
    others = [memory.take() for _ in range(shared_memory.SLABS)]
    assert sum(slab is not None for slab in others) == shared_memory.SLABS - 1
    del image
    assert memory.take() is not None
    with pytest.raises(ValueError, match="outside of shared memory"):
        next(slab for slab in others if slab is not None).array(shared_memory.SLAB_BYTES - 1, (2, 2, 3))
    memory.close()


def test_images_side_by_side_are_a_batch_without_a_copy() -> None:
    memory = np.arange(100, dtype=np.uint8)
    first, second, third = (memory[start : start + 12].reshape(2, 2, 3) for start in (4, 16, 29))
    batch = side_by_side([first, second])
    assert batch is not None and batch.shape == (2, 2, 2, 3)
    assert np.shares_memory(batch, memory) and batch.flags.c_contiguous
    np.testing.assert_array_equal(batch, np.stack([first, second]))
    assert side_by_side([second, third]) is None
    assert side_by_side([second, first]) is None
    assert side_by_side([first, second.copy()]) is None
    assert side_by_side([first.transpose(1, 0, 2), second.transpose(1, 0, 2)]) is None
