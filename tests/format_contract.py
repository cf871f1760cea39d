"""Contract of every output format: inherit `FormatContract`, name the format and read its mask back."""

import errno
import os
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
import pytest
from gmtool_serving.inputs.decode import Failure
from gmtool_serving.outputs.formats import FormatName, MaskItem, encode, paths
from gmtool_serving.outputs.write import MaskFolders, OutputFile, write_outputs

from gmtool.classes import ClassSet, load_classes
from gmtool.images import UInt8Array

STEM = PurePosixPath("a/town_000000_000019_leftImg8bit")


def make_item(num_classes: int, *, output: PurePosixPath = STEM, seed: int = 0) -> MaskItem:
    """Return a mask of blocks, of which an odd corner is ignored, with a confidence and a grey image."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, num_classes, (6, 9), dtype=np.uint8)
    mask = np.kron(blocks, np.ones((8, 7), dtype=np.uint8))[:45, :61]
    mask[:3, :5] = 255
    confidence = generator.integers(0, 256, mask.shape, dtype=np.uint8)
    return MaskItem(output, mask, confidence, np.full((*mask.shape, 3), 100, np.uint8))


class FormatContract:
    """What holds for the files of an image in every format."""

    name: ClassVar[FormatName]
    path: ClassVar[str] = f"{STEM}.png"
    """File of the image `STEM` below the output folder."""
    classes: ClassVar[ClassSet] = load_classes("voc")
    ignored: ClassVar[int] = 255
    """What an ignored pixel is read back as."""
    equal: ClassVar[float] = 1.0

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        """Return class indices (H, W) from the folder of the format, with another reader than gmtool's."""
        raise NotImplementedError

    def write(self, out: Path, item: MaskItem) -> tuple[OutputFile, ...] | Failure:
        (written,) = write_outputs([item], self.classes, [self.name], MaskFolders(out))
        return written

    @pytest.mark.parametrize(("height", "width"), [(45, 61), (1, 1), (1, 61), (45, 2)])
    def test_the_mask_is_read_back_by_another_reader(self, tmp_path: Path, height: int, width: int) -> None:
        item = make_item(len(self.classes))
        assert item.confidence is not None and item.pixels is not None
        mask, confidence, pixels = (array[:height, :width] for array in (item.mask, item.confidence, item.pixels))
        (file,) = (
            written
            if isinstance(written := self.write(tmp_path, MaskItem(STEM, mask, confidence, pixels)), tuple)
            else ()
        )
        assert file.path == self.path and file.is_whole(tmp_path)
        found = self.read(tmp_path, (height, width))
        assert found.shape == mask.shape
        assert (found == np.where(mask == 255, self.ignored, mask)).mean() >= self.equal

    def test_path_and_content_are_known_before_writing_and_the_same_each_time(self) -> None:
        files = encode(self.name, make_item(len(self.classes)), self.classes)
        assert [str(path) for path, _ in files] == [str(path) for path in paths(self.name, STEM)] == [self.path]
        assert files == encode(self.name, make_item(len(self.classes)), self.classes)

    def test_a_file_that_cannot_be_finished_leaves_the_old_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(tmp_path, make_item(len(self.classes)))
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        monkeypatch.setattr(os, "fsync", disk_full)
        failure = self.write(tmp_path, make_item(len(self.classes), seed=1))
        assert isinstance(failure, Failure) and failure.code == "disk_full" and "\n" not in failure.message
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def disk_full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
